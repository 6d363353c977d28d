"""Child processes of the demo: started quietly, known to be ready, ended in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
from collections.abc import Mapping, Sequence

import httpx

from orchestrator.tts.child import kill

log = logging.getLogger(__name__)

_TERMINATE_S = 8.0
_POLL_S = 0.05


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ChildFailed(Exception):
    """A child process ended before it was ready, or was not ready in time. The message says which and how."""


class Child:
    """One child process; its output goes to this process's standard error.

    Args:
        name: for messages.
        command: program and arguments.
        environment: variables added to this process's own.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._command, self._environment = command, environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process; None before `start`."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts it. Raises OSError when the program is not there."""
        setpriv = shutil.which("setpriv")  # util-linux: the child ends even when this process is killed outright
        guard = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
        self._process = await asyncio.create_subprocess_exec(
            *guard,
            *self._command,
            env={**os.environ, **self._environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=2,  # standard output belongs to the demo's own line
        )

    async def ready(self, url: str, within_s: float) -> None:
        """Waits until `url` answers 200. Raises `ChildFailed`."""
        assert self._process is not None
        async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
            deadline = asyncio.get_running_loop().time() + within_s
            while asyncio.get_running_loop().time() < deadline:
                if self._process.returncode is not None:
                    raise ChildFailed(f"{self.name} ended with exit code {self._process.returncode} while starting")
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(url)).status_code == 200:
                        return
                await asyncio.sleep(_POLL_S)
        raise ChildFailed(f"{self.name} was not ready within {within_s:.0f} s ({url})")

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
            log.warning("had to be killed", extra={"child": self.name})
        finally:
            kill(process)
            await process.wait()
