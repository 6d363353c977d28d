"""A bounded queue between two stages: the producer waits when it is full, and what it did is on record."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What a channel holds and has done since it was made."""

    size: int
    capacity: int
    peak: int
    passed: int
    dropped: int


class Channel(Generic[T]):
    """Policy: block the producer. Single consumer; `discard` drops what a clear has made worthless.

    Args:
        name: stage name, for metrics.
        capacity: most items held.
    """

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = asyncio.Event()
        self._peak = self._passed = self._dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """The next `put` would wait."""
        return len(self._items) >= self._capacity

    async def put(self, item: T) -> None:
        """Adds an item, waiting for room. Cancelling is safe: the item is then not in the channel."""
        while self.full:
            self._changed.clear()
            await self._changed.wait()
        self._items.append(item)
        self._peak = max(self._peak, len(self._items))
        self._changed.set()

    async def get(self) -> T:
        """Takes the oldest item, waiting for one. Cancelling is safe: nothing is lost."""
        while not self._items:
            self._changed.clear()
            await self._changed.wait()
        return self.pop()

    def items(self) -> tuple[T, ...]:
        """What it holds, oldest first, without taking it."""
        return tuple(self._items)

    def peek(self) -> T | None:
        """The oldest item, or None, without taking it."""
        return self._items[0] if self._items else None

    def pop(self) -> T:
        """Takes the oldest item. Raises IndexError when there is none."""
        item = self._items.popleft()
        self._passed += 1
        self._changed.set()
        return item

    def discard(self, worthless: Callable[[T], bool] = lambda _: True) -> int:
        """Drops every item for which `worthless` holds; returns how many."""
        kept = [item for item in self._items if not worthless(item)]
        dropped = len(self._items) - len(kept)
        self._items = deque(kept)
        self._dropped += dropped
        self._changed.set()
        return dropped

    def statistics(self) -> ChannelStatistics:
        """A snapshot."""
        return ChannelStatistics(len(self._items), self._capacity, self._peak, self._passed, self._dropped)
