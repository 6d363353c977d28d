"""`musetalk-orchestrator demo`: a loopback livekit-server, one agent and one orchestrator, as processes of their own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from musetalk_tools.livekit_server import LiveKitServer, LiveKitServerMissing, obtain
from musetalk_tools.processes import Child, ChildFailed, free_port

_MAX_SESSIONS = "8"
"""A trial is not turned away by what a small machine can hold: it shows what happens then."""


@dataclass(frozen=True)
class DemoInfo:
    """The line that `--json` prints when everything is ready."""

    orchestrator_url: str
    api_key: str
    agent_url: str
    agent_api_key: str
    livekit_url: str
    livekit_api_key: str
    livekit_api_secret: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `demo`."""
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout when everything is ready")
    parser.add_argument(
        "--port", type=int, default=8080, help="the orchestrator's port, 0 for a free one (default 8080)"
    )
    parser.add_argument(
        "--engine", default="auto", help="the agent's engine: auto, warp, musetalk, pattern (default auto)"
    )
    parser.add_argument(
        "--allow-private-urls", action="store_true", help="avatars may be fetched from loopback and private addresses"
    )
    parser.add_argument(
        "--no-conversation", action="store_true", help="do without conversations, and without their models"
    )
    parser.add_argument(
        "--log-level", help="show the agent's and the orchestrator's logs here, at this level (default: files, info)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs until Ctrl-C, SIGTERM or the end of a part. Exit code 0 when asked to end, 1 when something broke."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    children: list[Child] = []
    logs = Path(tempfile.mkdtemp(prefix="musetalk-demo-"))
    code = 1
    try:
        code = await _run(args, children, logs, stopping)
    except (LiveKitServerMissing, ChildFailed, OSError) as error:
        _say(str(error))
    finally:
        for child in reversed(children):
            await child.stop()
        if code == 0:  # a log that explains a failure stays
            shutil.rmtree(logs, ignore_errors=True)
    return code


async def _run(args: argparse.Namespace, children: list[Child], logs: Path, stopping: asyncio.Event) -> int:
    starting = asyncio.create_task(_start(args, children, logs))
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 0
    _announce(args, await starting)
    return await _watch(children, waiting)


def _say(line: str) -> None:
    print(f"demo: {line}", file=sys.stderr, flush=True)


async def _start(args: argparse.Namespace, children: list[Child], logs: Path) -> DemoInfo:
    server = LiveKitServer(await obtain(), "info", log_path=logs / "livekit-server.log")
    names = [server.child.name] if args.log_level else [server.child.name, "agent", "orchestrator"]
    _say("starting; logs: " + ", ".join(str(logs / f"{name}.log") for name in names))
    children.append(server.child)
    await server.start()
    agent_port, port = free_port(), args.port or free_port()
    info = DemoInfo(
        orchestrator_url=f"http://127.0.0.1:{port}",
        api_key="key_" + secrets.token_urlsafe(24),
        agent_url=f"http://127.0.0.1:{agent_port}",
        agent_api_key="agent_" + secrets.token_urlsafe(24),
        livekit_url=server.access.url,
        livekit_api_key=server.access.api_key,
        livekit_api_secret=server.access.api_secret,
    )
    level = {"LOG_LEVEL": (args.log_level or "info").upper(), "RENDERS_DIR": str(logs / "renders")}
    agent_environment = {
        "AGENT_API_KEY": info.agent_api_key,
        "AGENT_ENGINE": args.engine,
        "AGENT_DRAIN_S": "0",
        "AGENT_MAX_SESSIONS": os.environ.get("AGENT_MAX_SESSIONS", _MAX_SESSIONS),
        "ALLOW_PRIVATE_URLS": "true" if args.allow_private_urls else "false",
        **level,
    }
    orchestrator_environment = {
        "LIVEKIT_URL": info.livekit_url,
        "LIVEKIT_API_KEY": info.livekit_api_key,
        "LIVEKIT_API_SECRET": info.livekit_api_secret,
        "ORCHESTRATOR_API_KEY": info.api_key,
        "AGENT_URL": info.agent_url,
        "AGENT_API_KEY": info.agent_api_key,
        "PAGE_TOKEN_ENABLED": "true",
        "STORE_PATH": ":memory:",  # what it ran ends with it, and is no business of the next demo
        "AVATARS_DIR": str(logs / "avatars"),
        "DRAIN_S": "0",
        **({"CONVERSATION_PYTHON": ""} if args.no_conversation else {}),
        **level,
    }
    agent_log, orchestrator_log = (None if args.log_level else logs / f"{n}.log" for n in ("agent", "orchestrator"))
    agent = Child("agent", _command("musetalk_agent", agent_port), agent_environment, agent_log)
    orchestrator = Child("orchestrator", _command("orchestrator", port), orchestrator_environment, orchestrator_log)
    for child in (agent, orchestrator):
        children.append(child)
        await child.start()
    await asyncio.gather(
        agent.ready(f"{info.agent_url}/health", remind=_say),
        orchestrator.ready(f"{info.orchestrator_url}/health", remind=_say),
    )
    return info


def _command(module: str, port: int) -> list[str]:
    return [sys.executable, "-m", module, "serve", "--host", "127.0.0.1", "--port", str(port)]


def _announce(args: argparse.Namespace, info: DemoInfo) -> None:
    if args.json:
        print(json.dumps(asdict(info)), flush=True)
    else:
        print(f"\n  A face that speaks:  {info.orchestrator_url}/\n\n  API key  {info.api_key}", flush=True)
        print(f"  LiveKit  {info.livekit_url}\n\n  Ctrl-C ends it.", flush=True)


async def _watch(children: list[Child], stop: asyncio.Task[bool]) -> int:
    """Waits for the order to stop, or for the first part that ends by itself."""
    ends: dict[asyncio.Task[int], Child] = {asyncio.create_task(child.ended()): child for child in children}
    try:
        done, _ = await asyncio.wait({stop, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if stop in done:
            return 0
        for task in done & set(ends):
            child = ends[task]
            _say(f"{child.name} ended unexpectedly with exit code {task.result()}{child.last_lines()}")
        return 1
    finally:
        for task in (*ends, stop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
