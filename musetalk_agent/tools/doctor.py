"""`musetalk-agent doctor`: checks what this machine can do and what is missing, whether LiveKit can be reached from it (address,
keys, and a room with its media, as the agent joins one), and prints the next command to type."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from pydantic import ValidationError

from musetalk_agent.agent_settings import AgentSettings, offline_settings
from musetalk_agent.checks import Check, exit_code, next_command
from musetalk_agent.errors import WeightsMissing
from musetalk_agent.tools.doctor_machine import DoctorMachine, check_engine, check_musetalk
from musetalk_agent.weights import Manifest, ModelStore

_NEXT = "make demo, or musetalk-agent serve"
_SECRET = ("RENDERS_QUEUE",)
_ENGINES_END_S = 1200.0
"""The engine's own limits are shorter; a driver that hangs must not hold the doctor for ever."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--quick", action="store_true", help="hash nothing and start no engine: no sessions are measured"
    )
    for name in ("livekit-url", "livekit-api-key", "livekit-api-secret"):
        variable = name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", default=None, help=f"to try LiveKit with (default: {variable})")


def run(args: argparse.Namespace) -> int:
    """Prints a line for each thing that was looked at. 0 when nothing has to be done, 1 otherwise, 2 for a wrong setting, 130 after
    Ctrl-C."""
    log = logging.getLogger("musetalk_agent")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what fails is said in a line here
    try:
        return _run(args)
    finally:
        log.setLevel(level)


def _run(args: argparse.Namespace) -> int:
    try:
        settings = offline_settings()
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]).upper()
            given = f" {os.environ[name]!r}" if name in os.environ and name not in _SECRET else ""
            print(f"doctor: {name}{given}: {problem['msg']}", file=sys.stderr)
        return 2
    found: list[Check] = []

    def report(check: Check) -> None:
        found.append(check)
        if not args.json:
            print(check.line(), flush=True)

    try:
        asyncio.run(_examine(settings, _address(args), report, quick=args.quick))
    except KeyboardInterrupt:
        return 130
    todo = next_command(found)
    if args.json:
        print(json.dumps({"ok": exit_code(found) == 0, "next": todo, "checks": [check.values() for check in found]}))
    else:
        print(f"\nNext: {todo or _NEXT}")
    return exit_code(found)


def _address(args: argparse.Namespace) -> LiveKitAddress:
    def given(name: str) -> str:
        return getattr(args, name) or os.environ.get(name.upper(), "")

    return LiveKitAddress(given("livekit_url"), given("livekit_api_key"), given("livekit_api_secret"))


async def _examine(
    settings: AgentSettings, server: LiveKitAddress, report: Callable[[Check], None], *, quick: bool
) -> None:
    machine = DoctorMachine(
        settings,
        ModelStore(settings.models_dir, Manifest.load()),
        hashes=not quick,
        progress=lambda line: print(f"…     {line}", file=sys.stderr, flush=True),
    )
    report(Check("settings", f"AGENT_ENGINE={settings.engine}, MUSETALK_PROFILE={settings.musetalk_profile}"))
    if machine.wants_musetalk:
        for check in check_musetalk(machine):
            report(check)
    report(_faces(machine.store))
    report(_folder(settings.cache_dir))
    if quick:
        cure = "leave --quick away: the engine is started and measured"
        report(Check("engine", "not started, no sessions measured", cure, needed=False))
    else:
        async with asyncio.timeout(_ENGINES_END_S):
            report(await check_engine(machine))
    report(await check_livekit(server, JOIN_S))


def _faces(store: ModelStore) -> Check:
    """The models that find the face in an avatar, which every engine but `pattern` needs."""
    names = [name for name, entry in store.manifest.entries.items() if entry.group == "face"]
    try:
        for name in names:
            store.path(name)
    except WeightsMissing as error:
        return Check("face models", error.detail.partition(";")[0], "musetalk-agent fetch-models")
    return Check("face models", f"{len(names)} files in {store.directory}")


def _folder(folder: Path) -> Check:
    """Where prepared avatars are kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check(
            "avatars", f"{folder} cannot be written ({error.strerror})", "set AVATAR_CACHE_DIR to a folder that can"
        )
    return Check("avatars", str(folder))


_ANSWER_S = 5.0
JOIN_S = 20.0
"""A join through open UDP takes well under a second; through TCP alone some seconds."""
_WHAT = "LiveKit"


@dataclass(frozen=True, slots=True)
class LiveKitAddress:
    """The server, and the keys to join it with where they are known."""

    url: str
    api_key: str = ""
    api_secret: str = field(default="", repr=False)


async def check_livekit(server: LiveKitAddress, within_s: float = JOIN_S) -> Check:
    """Asks the server, and joins a room of a random name where there are keys. Never raises; when it is cancelled, the join ends in
    the background."""
    if not server.url:
        cure = "set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET for this command, and it joins a room"
        return Check(_WHAT, "not tried: LIVEKIT_URL is not set", cure, needed=False)
    if not server.url.startswith(("ws://", "wss://", "http://", "https://")):
        return Check(_WHAT, f"LIVEKIT_URL is {server.url!r}", "give an address that begins with ws:// or wss://")
    address = server.url.replace("ws", "http", 1) if server.url.startswith("ws") else server.url
    try:
        async with httpx.AsyncClient(timeout=_ANSWER_S) as http:
            answer = await http.get(address)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = str(error).strip() or type(error).__name__
        return Check(
            _WHAT, f"{server.url} does not answer ({said})", "check LIVEKIT_URL, its name, port and TLS, and firewalls"
        )
    if answer.status_code >= 500:
        return Check(_WHAT, f"{server.url} answers {answer.status_code}", "look whether livekit-server runs behind it")
    if not (server.api_key and server.api_secret):
        cure = "set LIVEKIT_API_KEY and LIVEKIT_API_SECRET for this command, and it joins a room"
        return Check(_WHAT, f"{server.url} answers; no room was joined", cure, needed=False)
    return await _joined(server, within_s)


async def _joined(server: LiveKitAddress, within_s: float) -> Check:
    from livekit import api, rtc

    from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors, without_tokens
    from musetalk_agent.publishers.livekit.detached_connect import abandon, leave

    name = f"doctor-{secrets.token_hex(4)}"
    grants = api.VideoGrants(room_join=True, room=name)
    token = api.AccessToken(server.api_key, server.api_secret).with_identity(name).with_grants(grants).to_jwt()
    room, loop = rtc.Room(), asyncio.get_running_loop()
    begun = loop.time()
    connecting = asyncio.create_task(room.connect(server.url, token), name="doctor-join")
    try:
        done, _ = await asyncio.wait({connecting}, timeout=within_s)
    except asyncio.CancelledError:
        abandon(room, connecting)  # a join must not be cancelled
        raise
    if not done:
        abandon(room, connecting)
        found = f"{server.url} takes the call, and no media connection came about within {within_s:g} s"
        return Check(_WHAT, found, "open UDP to the server's rtc ports (7882, or 50000-60000), or its TCP port 7881")
    took = loop.time() - begun
    try:
        with sdk_errors():
            connecting.result()
            await asyncio.wait_for(leave(room), _ANSWER_S)
    except (SdkError, TimeoutError) as error:
        said = without_tokens(str(error).partition("\n")[0]) or type(error).__name__
        return Check(
            _WHAT, f"{server.url} lets no participant join ({said})", "check LIVEKIT_API_KEY and LIVEKIT_API_SECRET"
        )
    return Check(_WHAT, f"{server.url}: joined a room in {took:.2f} s", figures={"join_s": round(took, 3)})
