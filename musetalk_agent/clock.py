"""Time as a value that is passed in: the real one, and one that tests and offline rendering wind forward by themselves."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Protocol


def utc_now() -> str:
    """The wall clock as ISO 8601 in UTC, to the millisecond; for people, never for pacing."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_text(seconds: float | None) -> str | None:
    """Seconds since 1970 (`time.time()`) as `utc_now` writes them; None stays None.

    What is noted for each frame or block is kept in seconds: the text takes many times as long as the clock.
    """
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Clock(Protocol):
    """Monotonic seconds, and waiting for a moment of them."""

    def now(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...

    async def sleep_until(self, deadline: float) -> None:
        """Returns at `deadline` or as soon after as possible; at once (after one turn of the loop) when it is past."""
        ...

    async def wait(self, event: asyncio.Event, deadline: float) -> bool:
        """Waits for `event` or for `deadline`, whichever comes first; clears the event and returns whether it was set."""
        ...

    @contextmanager
    def working(self) -> Iterator[None]:
        """Marks work in other threads, during which a virtual clock stands still."""
        ...


class MonotonicClock:
    """The machine's own monotonic clock."""

    def now(self) -> float:
        """`time.monotonic()`."""
        return time.monotonic()

    async def sleep_until(self, deadline: float) -> None:
        """Sleeps; cancelling is safe."""
        await asyncio.sleep(max(0.0, deadline - time.monotonic()))

    async def wait(self, event: asyncio.Event, deadline: float) -> bool:
        """Cancelling is safe."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await event.wait()
        fired = event.is_set()
        event.clear()
        return fired

    @contextmanager
    def working(self) -> Iterator[None]:
        """Real time passes by itself."""
        yield


class VirtualClock:
    """Stands still until every task waits, then jumps to the earliest deadline: `run` drives it."""

    _IDLE_TURNS = 20  # turns of the event loop in which no task runs before time may jump

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._working = 0
        self._works = 0

    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    async def sleep_until(self, deadline: float) -> None:
        """Waits for virtual time; cancelling is safe."""
        if deadline <= self._now:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (deadline, next(self._order), future))
        await future

    async def wait(self, event: asyncio.Event, deadline: float) -> bool:
        """Cancelling is safe."""
        waiting = {asyncio.create_task(event.wait()), asyncio.create_task(self.sleep_until(deadline))}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        fired = event.is_set()
        event.clear()
        return fired

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keeps time still while a thread works."""
        self._working += 1
        self._works += 1
        try:
            yield
        finally:
            self._working -= 1
            self._works += 1

    async def run(self, until: float) -> None:
        """Winds time forward to `until`, waking every sleeper up to then at its moment. Cancelling leaves time where it is."""
        while True:
            await self._settle()
            while self._sleepers and self._sleepers[0][2].done():
                heapq.heappop(self._sleepers)
            if not self._sleepers or self._sleepers[0][0] > until:
                break
            deadline, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, deadline)
            future.set_result(None)
        self._now = max(self._now, until)
        await self._settle()

    async def _settle(self) -> None:
        """Returns when no thread has worked, begun or ended for a while of loop turns: all that follows from it is done too."""
        ready: Collection[object] = getattr(
            asyncio.get_running_loop(), "_ready", (None,)
        )  # asyncio's own; uvloop has none
        quiet, seen = 0, self._works
        while quiet < self._IDLE_TURNS:
            await asyncio.sleep(0.0005 if self._working else 0)
            moved = self._working or self._works != seen
            quiet = (
                0 if moved else quiet + (1 if ready else self._IDLE_TURNS // 2)
            )  # with no task ready, one more look is enough
            seen = self._works
