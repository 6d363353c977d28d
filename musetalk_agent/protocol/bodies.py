"""Bodies of requests, bounded in size and in time, at both services: nothing is held open by sending nothing."""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

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
