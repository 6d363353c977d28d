"""What Python before 3.11.3, which Debian 12 has (3.11.2), lacks: a time limit that holds in a clean-up, too."""

from __future__ import annotations

import asyncio
import sys
from functools import cache
from types import TracebackType


@cache
def mend_timeouts() -> None:
    """Makes `asyncio.timeout` raise TimeoutError also in a task that was cancelled before, as since CPython 3.11.3 (gh-102780).

    Without that a clean-up ends with CancelledError at its first step that takes too long, and its other steps are left out.
    Newer Pythons are left as they are. Modules whose clean-ups rely on it call this when they are imported; once is done.
    """
    if sys.version_info >= (3, 11, 3):
        return
    enter, leave = asyncio.Timeout.__aenter__, asyncio.Timeout.__aexit__
    before: dict[asyncio.Timeout, int] = {}

    async def entered(self: asyncio.Timeout) -> asyncio.Timeout:
        await enter(self)
        task = asyncio.current_task()
        assert task is not None
        before[self] = task.cancelling()
        return self

    async def left(
        self: asyncio.Timeout,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cancelling = before.pop(self)
        await leave(self, kind, error, trace)
        task = asyncio.current_task()
        if kind is asyncio.CancelledError and self.expired() and task is not None and task.cancelling() <= cancelling:
            raise TimeoutError from error

    for name, mended in (("__aenter__", entered), ("__aexit__", left)):
        setattr(asyncio.Timeout, name, mended)
