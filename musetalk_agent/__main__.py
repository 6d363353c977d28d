"""The agent's command line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
import threading
from typing import Any

_ENGINE_LOST = 70
"""Exit code when a card failed for good (EX_SOFTWARE of sysexits.h): the supervisor starts a new process."""
_ENDS_WITHIN_S = 5.0
"""A process whose engine is lost ends after so long, whatever hangs. Its sessions were ended when the engine failed."""


class _Command(argparse.ArgumentParser):
    """The options of one subcommand. Its module is loaded when it is the one that is asked for: together they take longer to load
    than what a server needs beside them.

    Args:
        tool: name of the module with `add_arguments(parser)` and `run(args)`, or None where the caller adds both.
    """

    def __init__(self, *, tool: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._tool = tool

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with the options of the module."""
        if self._tool is not None:
            tool, self._tool = importlib.import_module(self._tool), None
            tool.add_arguments(self)
            self.set_defaults(run=tool.run)
        return super().parse_known_args(args, namespace)


_TOOLS = (
    ("doctor", "tools.doctor", "say what this machine can do, what is missing, and what to type next"),
    ("prepare", "tools.prepare", "prepare an avatar offline and print its quality report"),
    ("render", "renders.render_command", "make a film of an avatar that speaks a recording, or a list of them"),
    ("restore", "renders.restore_command", "restore the faces of a clip before it is prepared, or of a film"),
    ("render-worker", "renders.worker_command", "make the renders that an orchestrator ordered"),
    ("measure-sync", "measure.measure_sync", "measure how late the lips of a video are"),
    ("judge", "judge.command", "say whether a film of a talking face is good: lips, picture, person"),
    ("dataset", "dataset.command", "make training data for MuseTalk's own trainer of a folder of films"),
    ("monitor", "tools.monitor", "a live table of an agent's sessions"),
    ("profile", "measure.profile", "measure an engine stage by stage"),
    ("fetch-models", "tools.fetch_models", "fetch and verify model files"),
    (
        "convert-weights",
        "tools.convert_weights",
        "write half-precision copies of MuseTalk's weights, which load faster",
    ),
    ("build-engine", "tools.build_engine", "build TensorRT plans of MuseTalk's networks"),
)
"""Subcommand, module below `musetalk_agent`, and what it does."""


def parser() -> argparse.ArgumentParser:
    """Every subcommand; a subcommand's own options are known when it is parsed."""
    from musetalk_agent.protocol.http import VERSION

    top = argparse.ArgumentParser(prog="musetalk-agent", description="Renders talking avatars into LiveKit rooms.")
    top.add_argument("--version", action="version", version=f"musetalk-agent {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)
    serve = commands.add_parser(
        "serve", help="run the agent (settings come from the environment, see docs/how-to/operations.md)"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8090, help="port to listen on (default 8090)")
    serve.set_defaults(run=_serve)
    for name, module, text in _TOOLS:
        commands.add_parser(name, help=text, description=text, tool=f"musetalk_agent.{module}")
    return top


def _serve(args: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from musetalk_agent.agent_settings import AgentSettings
    from musetalk_agent.errors import AgentError
    from musetalk_agent.protocol.logs import configure
    from musetalk_agent.service.agent_app import AgentServer, create_app

    try:
        settings = AgentSettings()
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]).upper()
            print(f"musetalk-agent: {name}: {problem['msg']}", file=sys.stderr)
        return 2
    configure(settings.log_level)
    _limit_arenas()

    def end() -> None:
        server.should_exit = True
        watchdog = threading.Timer(
            _ENDS_WITHIN_S, os._exit, (_ENGINE_LOST,)
        )  # a driver that hangs must not keep the process
        watchdog.daemon = True
        watchdog.start()

    def give_up() -> None:
        server.should_exit = True

    try:
        app = create_app(settings, on_start_failed=give_up, on_engine_lost=end)
    except AgentError as error:
        print(f"musetalk-agent: {error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    server = AgentServer(app, settings, host=args.host, port=args.port)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once all is closed
        server.run()
    if app.state.engines.lost:
        return _leave(_ENGINE_LOST, at_once=True)
    failed: Exception | None = app.state.warmup.error
    if failed is not None:
        reason = f"{failed.code.value}: {failed.detail}" if isinstance(failed, AgentError) else str(failed)
        print(f"musetalk-agent: {reason}", file=sys.stderr)
        return _leave(1)
    return _leave(0 if server.started else 1)


def _leave(code: int, *, at_once: bool = False) -> int:
    """Ends the process at once where the LiveKit SDK was loaded: its threads abort now and then when the interpreter goes away
    under them, and what was a clean end would look like a crash. `at_once` does so anyway: the interpreter's end would wait for
    threads that hang in a broken device."""
    if at_once or "livekit.rtc" in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _limit_arenas() -> None:
    """Keeps glibc from giving each thread its own heap: frames are made in one thread and freed in another, and with a
    heap per thread what is freed rarely returns to the system. Elsewhere there is nothing to limit."""
    import ctypes

    arena_max = -8  # M_ARENA_MAX of malloc.h
    try:
        ctypes.CDLL(None).mallopt(arena_max, 2)
    except (AttributeError, OSError):
        return


def _limit_blas() -> None:
    """Keeps numpy's matrix products in the thread that asks for one, unless the environment says otherwise.

    They are so small here that a second thread mostly spins while it waits. OpenBLAS reads this when numpy is loaded, never again.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main() -> int:
    """Entry point of `musetalk-agent`; returns the exit code."""
    _limit_blas()
    try:
        args = parser().parse_args()
        code: int = args.run(args)
    except KeyboardInterrupt:  # while modules are loaded, for one; commands that leave something say so themselves
        print("musetalk-agent: interrupted.", file=sys.stderr)
        code = 130
    return _leave(code)


if __name__ == "__main__":
    sys.exit(main())
