"""Runs one of the two services inside a container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from musetalk_agent.protocol.http import WARMING

_POLL_S = 0.1
_NOTICE_S = 1.0
"""How long a process has to show that the platform's own SIGTERM has reached it: a second one would end it at once."""
_ASK_S = 2.0
_CLOSE_S = 6.0
"""What a service may take to close, beyond its time to drain."""


class ServiceFailed(Exception):
    """A service ended before it was ready, or was not ready in time; the message says which and how."""


class Service:
    """One process. All methods block: Modal calls them where nothing else runs.

    Args:
        module: `orchestrator` or `musetalk_agent`.
        port: where it listens, on every interface.
        variables: its environment, over this process's own.
        without: variables that are not its business.
        host: the interface; in a container the proxy is the only way in.
    """

    def __init__(
        self,
        module: str,
        port: int,
        variables: Mapping[str, str],
        without: frozenset[str] = frozenset(),
        *,
        host: str = "0.0.0.0",
    ) -> None:
        self.command = [sys.executable, "-m", module, "serve", "--host", host, "--port", str(port)]
        self.environment = {k: v for k, v in os.environ.items() if k not in without} | dict(variables)
        self._address = f"http://127.0.0.1:{port}/health"
        self._http = build_opener(ProxyHandler({}))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, within_s: float) -> None:
        """Returns when it answers and does not warm up any more. Raises ServiceFailed."""
        self._process = process = subprocess.Popen(self.command, env=self.environment, start_new_session=True)
        until = time.monotonic() + within_s
        while (health := self.health()) is None or health.get("status") == WARMING:
            if process.poll() is not None:
                raise ServiceFailed(f"{self.command[2]} ended with exit code {process.returncode} while starting")
            if time.monotonic() > until:
                process.kill()
                process.wait()
                raise ServiceFailed(f"{self.command[2]} was not ready within {within_s:g} s")
            time.sleep(_POLL_S)

    def health(self) -> dict[str, object] | None:
        """What it says of itself, ready or not; None when it does not answer."""
        try:
            with self._http.open(self._address, timeout=_ASK_S) as answer:
                answered = json.load(answer)
        except HTTPError as error:
            answered = json.load(error)
        except (OSError, ValueError):
            return None
        return answered if isinstance(answered, dict) else None

    def end(self, drain_s: float) -> int:
        """Lets it drain, and returns its exit code. It is killed when it has not ended soon after `drain_s`."""
        process = self._process
        assert process is not None
        noticed = time.monotonic() + _NOTICE_S
        while process.poll() is None and not self._draining() and time.monotonic() < noticed:
            time.sleep(_POLL_S)
        if process.poll() is None and not self._draining():
            process.terminate()
        try:
            return process.wait(drain_s + _CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _draining(self) -> bool:
        answered = self.health()
        return answered is not None and answered.get("status") == "draining"
