"""What the HTTP servers of both services share: deadlines for silent clients, and bounds on connections and bodies.

uvicorn itself waits for ever for the rest of a request's head, and takes every connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
import resource
from typing import Any

import h11
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

HEAD_S = 10.0
"""A connection on which no request is being answered has so long for the next one's whole head, also the one of a handshake."""
WRITE_S = 60.0
"""A client that takes nothing of an answer for so long is gone, or holds the connection on purpose."""
_log = logging.getLogger(__name__)


def most_connections() -> int:
    """Half the file descriptors that the process may have, and at most 4096: the other half is for what it opens itself."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if files == resource.RLIM_INFINITY else max(64, min(4096, files // 2))


CONNECTIONS = most_connections()


class TimedHttp(H11Protocol):
    """One connection. It is closed when a head takes longer than `HEAD_S`, or when its client reads nothing for `WRITE_S`.

    When more than `CONNECTIONS` are open, the one that has waited longest for a head is closed; where none waits, the new one is.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._over = False

    @property
    def waits_until(self) -> float | None:
        """When this connection is closed for want of a head (the loop's clock); None while it is not waited for."""
        return None if self._deadline is None else self._deadline.when()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A client has connected."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Something of a request, or of a body that its answer did not wait for."""
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self._over:
            self._stop_waiting()
        else:
            self._wait()

    def pause_writing(self) -> None:
        """The client does not read as fast as the answer is written."""
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """The connection is another protocol's from now on."""
        self._give_up_deadlines()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._give_up_deadlines()
        super().connection_lost(exc)

    def _give_up_deadlines(self) -> None:
        self._over = True
        self._stop_waiting()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self._close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        self.transport.abort()

    def _make_room(self) -> None:
        waiting = [one for one in self.connections if isinstance(one, TimedHttp) and one.waits_until is not None]
        oldest = min(waiting, key=lambda one: one.waits_until or 0.0)  # never empty: this one waits too
        _log.warning("too many connections: one that sent no request is closed", extra={"limit": CONNECTIONS})
        oldest.transport.abort()


MAX_BODY = 256 << 10
"""Bytes of a JSON body: 5000 characters to speak, escaped, take 30 KiB."""
SILENCE_S = 15.0
"""Longest wait for the next part of a body."""
_JSON_S = 30.0
"""Longest wait for the whole of a JSON body."""
UPLOAD_S = 1800.0
"""Longest wait for the whole of a clip: 256 MiB at 1.2 Mbit/s."""
_COUNTED = 10**19
"""A length of more digits than servers take; Python reads no number of more than 4300 digits."""
_SPEAK = re.compile(r"/session/[^/]+/speak/?")


def bounded(receive: Receive) -> Receive:
    """For JSON: reading raises ProblemError `message_too_large` or `body_timeout` past the limits."""
    size, parts = 0, timely(receive, longest_s=_JSON_S)

    async def receiving() -> Message:
        nonlocal size
        message = await parts()
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            raise too_large()
        return message

    return receiving


def dictated(scope: Scope) -> bool:
    """Whether the body is a text that may still be being written."""
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    return scope.get("method") == "POST" and kind == "text/plain" and _SPEAK.fullmatch(scope["path"]) is not None


def timely(receive: Receive, silence_s: float | None = None, *, longest_s: float | None = None) -> Receive:
    """Reading raises ProblemError `body_timeout` when the body goes on and nothing of it comes for `silence_s` (`SILENCE_S`).

    And when the whole of it takes more than `longest_s`, however evenly it trickles.
    """
    complete, pause_s = False, silence_s or SILENCE_S
    begun = asyncio.get_running_loop().time()

    async def receiving() -> Message:
        nonlocal complete
        if complete:
            return await receive()  # what comes now is the end of the connection, at its own time
        try:
            async with asyncio.timeout(pause_s):
                message = await receive()
        except TimeoutError:
            raise _too_slow(pause_s) from None
        complete = not message.get("more_body", False)
        if not complete and longest_s is not None and asyncio.get_running_loop().time() - begun > longest_s:
            raise _too_long(longest_s)
        return message

    return receiving


def announced(scope: Scope) -> int:
    """Bytes that the head of a request promises, `_COUNTED` at most; 0 where it does not say."""
    length = Headers(scope=scope).get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return 0
    return min(int(length), _COUNTED) if len(length) <= len(str(_COUNTED)) else _COUNTED


def too_large() -> ProblemError:
    """For a JSON body past `MAX_BODY`."""
    return ProblemError(
        ErrorCode.MESSAGE_TOO_LARGE, f"The body passes {MAX_BODY} bytes; clips go to POST /avatars.", limit=MAX_BODY
    )


def _too_slow(silence_s: float) -> ProblemError:
    return ProblemError(
        ErrorCode.BODY_TIMEOUT, f"The body was not sent whole: nothing came for {silence_s:g} s.", limit=silence_s
    )


def _too_long(longest_s: float) -> ProblemError:
    return ProblemError(ErrorCode.BODY_TIMEOUT, f"The body was not sent whole within {longest_s:g} s.", limit=longest_s)
