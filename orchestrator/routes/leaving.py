"""Callers that leave before they have their answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

_Answer = TypeVar("_Answer")


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """The work's answer. The work is cancelled when the caller closes the connection, and when this is.

    The request's body must have been read. Raises ProblemError `invalid_request` when the caller has left, which nobody reads, and
    what the work raises.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ProblemError(
                ErrorCode.INVALID_REQUEST, "The caller left before the answer: what it asked for is undone."
            )
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
