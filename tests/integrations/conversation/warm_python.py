"""The interpreters of livekit-agents, for all programs of a run: each is a fork of one process that has imported it.

To import it takes three CPU seconds, more than most of what is tested with it. `path()` is a program that takes `-m MODULE …`,
`-c CODE …` and `SCRIPT …` as the interpreter does. It stands for the fork: it ends as the fork ends, and takes the fork along when
it is killed.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.conversation.conversations import PLUGIN, find_python
from orchestrator.conversation.embedded_model import ROOT
from orchestrator.worker_process import bare_environment

MODULES = tuple(
    f"orchestrator.conversation.worker.{name}"
    for name in ("room_conversation", "room_agent", "turn_ends", "timed_voice", "awaited_events", "inline_executor")
)
STAND_IN = """#!{python} -IS
import json, os, signal, socket, sys
asking = socket.socket(socket.AF_UNIX)
asking.connect({address!r})
socket.send_fds(asking, [b"."], [0, 1, 2])
given = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}
asking.sendall(json.dumps(given).encode() + b"\\n")
code = int(asking.makefile().readline() or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""

_running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
"""By the interpreter."""


def path(python: str | None = None, modules: Sequence[str] = MODULES) -> str:
    """The program. Starts the process behind it when it is first asked for, or has ended.

    `python` is the interpreter, by default that of the conversations, and `modules` what it has imported.
    """
    python = python or str(find_python())
    if python not in _running or _running[python][0].poll() is not None:
        _running[python] = _started(Path(tempfile.mkdtemp(prefix="warm-")), python, modules)
    return str(_running[python][1] / "python")


def _started(folder: Path, python: str, modules: Sequence[str]) -> tuple[subprocess.Popen[bytes], Path]:
    address = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        setpriv = shutil.which("setpriv")  # it ends even when the run is killed outright
        guard = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
        server = [python, "-m", "tests.integrations.conversation.warm_server", str(listener.fileno())]
        environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
        process = subprocess.Popen(
            [*guard, *server, *modules],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=[listener.fileno()],
        )
    program = folder / "python"
    program.write_text(STAND_IN.format(python=sys.executable, address=address))
    program.chmod(0o700)
    return process, folder


def end() -> None:
    """Ends it, if it runs."""
    for process, folder in _running.values():
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
    _running.clear()
