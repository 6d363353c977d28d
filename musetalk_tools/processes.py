"""Child processes of the demo: started quietly, known to be ready, ended in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from musetalk_agent.protocol.http import WARMING
from orchestrator.worker_process import kill

log = logging.getLogger(__name__)

_TERMINATE_S = 8.0
_POLL_S = 0.05
_REMIND_S = 15.0
_LAST_LINES = 15
_LAST_BYTES = 8192

READY_S = 600.0
"""How long a part that is alive is waited for: a slow machine gets its time, and a part that hangs still comes to an end."""


_PORTS = range(20_000, 32_768)
"""Below those that Linux hands out for connections and for port 0: such a one may be taken before a child has bound it."""


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that nothing listens on at this moment, chosen at random. Raises `OSError` where none is found."""
    for port in random.sample(_PORTS, 100):
        with socket.socket(socket.AF_INET, kind) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(errno.EADDRINUSE, "no free port among a hundred of 127.0.0.1")


def _warming(answer: httpx.Response) -> str:
    """What a service that warms up says of it; empty for any other answer."""
    try:
        said = answer.json()
    except ValueError:
        return ""
    if not isinstance(said, dict) or said.get("status") != WARMING:
        return ""
    return str(said.get("engine_note") or WARMING)


class ChildFailed(Exception):
    """A child process ended before it was ready, or was not ready in time. The message says which and how."""


class Child:
    """One child process.

    Args:
        name: for messages.
        command: program and arguments.
        environment: variables added to this process's own.
        log_path: the file that its output is appended to; None sends it to this process's standard error.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log_path: Path | None = None
    ) -> None:
        self.name, self.log_path = name, log_path
        self._command, self._environment = command, environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process; None before `start`."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts it. Raises OSError when the program is not there or the log file cannot be written."""
        setpriv = shutil.which("setpriv")  # util-linux: the child ends even when this process is killed outright
        guard = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
        with contextlib.ExitStack() as closing:
            # standard output belongs to the demo's own line
            output = closing.enter_context(self.log_path.open("ab")).fileno() if self.log_path else 2
            self._process = await asyncio.create_subprocess_exec(
                *guard,
                *self._command,
                env={**os.environ, **self._environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C reaches this process alone, which ends the others in their order
            )

    async def ready(self, url: str, within_s: float = READY_S, remind: Callable[[str], None] | None = None) -> None:
        """Waits until `url` answers 200. Raises `ChildFailed`.

        A part that answers that it is warming up (`engine_note` of the agent's `/health`) is waited for as long as it says so: it
        ends by itself when that takes too long. `remind` is called every 15 s of waiting, with a sentence that says how long it has
        lasted.
        """
        assert self._process is not None
        async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
            begun = time.monotonic()
            reminded, until, note = begun, begun + within_s, ""
            while (now := time.monotonic()) < until:
                if self._process.returncode is not None:
                    code = self._process.returncode
                    raise ChildFailed(f"{self.name} ended with exit code {code} while starting{self.last_lines()}")
                with contextlib.suppress(httpx.TransportError):
                    answer = await http.get(url)
                    if answer.status_code == 200:
                        return
                    if note := _warming(answer):
                        until = now + within_s
                if remind is not None and now >= reminded + _REMIND_S:
                    reminded = now
                    remind(f"{self.name} is still starting after {now - begun:.0f} s{note and ': ' + note}")
                await asyncio.sleep(_POLL_S)
        raise ChildFailed(f"{self.name} was not ready within {within_s:.0f} s ({url}){self.last_lines()}")

    def last_lines(self) -> str:
        """The end of its log file, to be added to a message; empty without a log file or when nothing was written."""
        if self.log_path is None:
            return ""
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
            return "".join(f"\n  {line}" for line in lines)
        return ""

    async def ended(self) -> int:
        """Waits for its end; returns the exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after 8 s, and at once when cancelled. Idempotent; fine before `start`."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_TERMINATE_S):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not end within %.0f s and is killed", self.name, _TERMINATE_S)
        finally:
            kill(process)
            await process.wait()
