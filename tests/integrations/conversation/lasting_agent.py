"""An agent for all conversations of a run, one after the other: starting one takes 2 CPU seconds, and no test here kills it."""

from __future__ import annotations

import os
import shutil
import subprocess

from tests.orchestrator.voice.stack import AGENT_ENVIRONMENT, agent_command

_running: list[tuple[subprocess.Popen[bytes], str]] = []


def address() -> str:
    """Its base URL. Starts it when it is first asked for, or has ended; it may not answer yet."""
    if not _running or _running[-1][0].poll() is not None:
        command, url = agent_command()
        setpriv = shutil.which("setpriv")  # it ends even when the run is killed outright
        guard = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
        environment = os.environ | AGENT_ENVIRONMENT
        process = subprocess.Popen([*guard, *command], env=environment, stdin=subprocess.DEVNULL, stdout=2)
        _running.append((process, url))
    return _running[-1][1]


def end() -> None:
    """Ends it, if it runs."""
    for process, _ in _running:
        process.terminate()
        process.wait()
    _running.clear()
