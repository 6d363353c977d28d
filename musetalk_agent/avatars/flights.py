"""Single flight: callers who want the same thing at the same time share one piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


@dataclass
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Flights:
    """Runs each key once at a time. Work is cancelled when its last caller leaves."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[Any]] = {}
        self._ending: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Result of `work` for `key`, shared with everybody who asks while it runs.

        Cancelling is safe: it ends this caller's wait only. When the last one leaves, the work is cancelled.
        """
        flight = cast("_Flight[T] | None", self._flights.get(key))
        if flight is None:
            task = asyncio.create_task(_call(work), name=f"avatar {key}")
            flight = _Flight(task)
            self._flights[key] = flight
            task.add_done_callback(lambda _: self._landed(key, flight))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.task.done():
                self._leave(key, flight)

    def abort(self) -> None:
        """Cancels all work and forgets it."""
        for key, flight in list(self._flights.items()):
            self._leave(key, flight)

    def _leave(self, key: Hashable, flight: _Flight[Any]) -> None:
        """A later caller must not board work that is being cancelled."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._ending.add(flight.task)
        flight.task.cancel()

    def _landed(self, key: Hashable, flight: _Flight[Any]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._ending.discard(flight.task)
        if not flight.task.cancelled():
            flight.task.exception()  # looked at, so that an error nobody waited for is not reported as lost


async def _call(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
