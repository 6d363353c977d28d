"""Modal's sticky sessions: requests with a session's token reach one container. Only this file knows the package `modal`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

HEADER = "Modal-Authorization"
_FULL = frozenset({"429", "503", "504"})
"""What the proxy answers when no container has room and none can be had."""
_RETRY_AFTER_S = 5


@dataclass(frozen=True)
class Ticket:
    """A place in one container. `token` leads to it, at the address that all containers share."""

    url: str
    token: str = field(repr=False)


class StickySessions(Protocol):
    """Places in containers. Cancelling is harmless: a place that nobody uses ends by itself after its idle time."""

    async def start(self, idle_s: int) -> Ticket:
        """A place; waits while there is none. It ends after `idle_s` without a request or a connection.

        Raises ProblemError: `at_capacity`, or `agent_unavailable` when the server cannot be used at all.
        """
        ...

    async def terminate(self, token: str) -> None:
        """Ends the place. Raises ProblemError `agent_unavailable` when that could not be said."""
        ...

    async def check(self) -> None:
        """Whether there is such a server. Raises ProblemError `agent_unavailable`."""
        ...


class ModalSessions:
    """Sticky sessions of a server that was deployed with Modal, spoken to as the container's own workspace.

    Args:
        app, server: their names at Modal.
    """

    def __init__(self, app: str, server: str) -> None:
        self._modal: Any = import_module("modal")
        self._errors = (self._modal.Error, import_module("aiohttp").ClientError, OSError)
        self._name = f"{app}/{server}"
        self._server = self._modal.Server.from_name(app, server)
        self._url = ""

    async def check(self) -> None:
        if self._url:
            return
        try:
            url = await self._server.get_url.aio()
        except self._errors as error:
            raise self._problem(error) from error
        if not url:
            raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, f"Modal's {self._name} has no address: it is no server.")
        self._url = url.rstrip("/")

    async def start(self, idle_s: int) -> Ticket:
        await self.check()
        try:
            told = await self._server.sessions.start.aio(idle_timeout=idle_s)
        except self._errors as error:
            raise self._problem(error) from error
        return Ticket(self._url, told.token)

    async def terminate(self, token: str) -> None:
        try:
            await self._server.sessions.terminate.aio(token)
        except self._errors as error:
            raise self._problem(error) from error

    def _problem(self, error: Exception) -> ProblemError:
        status = re.search(r"\bstatus (\d{3})\b", str(error))
        timeouts = (TimeoutError, self._modal.exception.TimeoutError)
        if isinstance(error, timeouts) or (status and status[1] in _FULL):
            return full(f"no container of {self._name} has room ({error})")
        self._url = ""
        text = f"Modal's {self._name} cannot be used ({type(error).__name__}: {error}). Is it deployed, and MODAL_APP right?"
        return ProblemError(ErrorCode.AGENT_UNAVAILABLE, text, retry_after_s=_RETRY_AFTER_S)


def full(reason: str) -> ProblemError:
    """Nobody has a place now."""
    text = f"No agent has a free place: {reason}. Try again later, or allow more containers."
    return ProblemError(ErrorCode.AT_CAPACITY, text, retry_after_s=_RETRY_AFTER_S)
