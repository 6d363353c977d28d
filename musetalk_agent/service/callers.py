"""Work that ends when the caller has gone: a start that takes long must not go on for somebody who gave up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from musetalk_agent.errors import SessionEnded

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller's connection ends, or when this is. The body must have been read.

    Raises:
        SessionEnded: the caller has gone; nothing reads the answer.
    """
    job = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return await job
        raise SessionEnded(
            "The caller closed the connection before the session had started, so the start was given up."
        )
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
