"""Answers by idempotency key: a request that is sent again gets the answer of the first. Bounded."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

MAX_KEYS = 4096
MAX_AGE_S = 24 * 3600.0
"""No session lives longer (SESSION_MAX_S), so no answer is of use for longer."""
CLAIM_S = 30.0
"""How long the answer of a start waits for a caller that lost its connection to ask again with the same key."""
_Answer = TypeVar("_Answer")


@dataclass(eq=False)
class _Entry(Generic[_Answer]):
    body: str
    task: asyncio.Task[_Answer]
    begun_at: float
    waiting: int = 0
    delivered: bool = False
    unclaimed: asyncio.TimerHandle | None = None


async def _holds(answer: object) -> bool:
    return True


class Idempotency(Generic[_Answer]):
    """Runs an operation once per key: the same key with the same body gets the same answer, also at the same time.

    An answer whose callers have left waits `CLAIM_S` for its key to be used again; then what it did is undone.
    Answers are kept for a day at most.

    Args:
        holds: whether an answer is still true. False: the operation is run again; it may also raise what the key gets instead.
        abandon: undoes an operation whose answer was not delivered. Must not block.
    """

    def __init__(
        self,
        holds: Callable[[_Answer], Awaitable[bool]] = _holds,
        abandon: Callable[[_Answer], object] = lambda answer: None,
    ) -> None:
        self._holds = holds
        self._abandon = abandon
        self._entries: OrderedDict[str, _Entry[_Answer]] = OrderedDict()

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._entries)

    async def run(self, key: str, body: str, operation: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """The operation's answer, or the one it gave before. Failures are forgotten.

        The operation goes on when the caller is cancelled, for `CLAIM_S`. Raises ProblemError `idempotency_conflict` for a key that
        was used with another body, and what the operation and `holds` raise.
        """
        entry = await self._entry(key, body, operation)
        entry.waiting += 1
        if entry.unclaimed is not None:
            entry.unclaimed.cancel()
        try:
            answer = await asyncio.shield(entry.task)
            entry.delivered = True
            return answer
        finally:
            entry.waiting -= 1
            if not entry.waiting and not entry.delivered:
                entry.unclaimed = asyncio.get_running_loop().call_later(CLAIM_S, self._give_up, key, entry)

    async def _entry(self, key: str, body: str, operation: Callable[[], Awaitable[_Answer]]) -> _Entry[_Answer]:
        while True:
            entry = self._entries.get(key)
            if entry is None:
                return self._begin(key, body, operation)
            if entry.body != body:
                raise ProblemError(
                    ErrorCode.IDEMPOTENCY_CONFLICT,
                    "This Idempotency-Key was used with another body: use a new key for a new request.",
                    field="Idempotency-Key",
                )
            if not entry.task.done():
                return entry
            if time.monotonic() - entry.begun_at <= MAX_AGE_S and await self._holds(entry.task.result()):
                if self._entries.get(key) is entry:
                    return entry
            elif self._entries.get(key) is entry:
                del self._entries[key]

    def _begin(self, key: str, body: str, operation: Callable[[], Awaitable[_Answer]]) -> _Entry[_Answer]:
        async def call() -> _Answer:
            return await operation()

        task = asyncio.create_task(call(), name="idempotent-start")
        entry = self._entries[key] = _Entry(body, task, time.monotonic())
        task.add_done_callback(lambda task: self._settle(key, entry))
        while len(self._entries) > MAX_KEYS:
            self._entries.popitem(last=False)
        return entry

    def _settle(self, key: str, entry: _Entry[_Answer]) -> None:
        failed = entry.task.cancelled() or entry.task.exception() is not None
        if failed and self._entries.get(key) is entry:
            del self._entries[key]

    def _give_up(self, key: str, entry: _Entry[_Answer]) -> None:
        """An answer that was not delivered was not asked for again."""
        if entry.waiting or entry.delivered:
            return
        if self._entries.get(key) is entry:
            del self._entries[key]
        if not entry.task.done():
            entry.task.cancel()
        elif not entry.task.cancelled() and entry.task.exception() is None:
            self._abandon(entry.task.result())

    async def aclose(self) -> None:
        """Cancels operations that run."""
        for entry in self._entries.values():
            if entry.unclaimed is not None:
                entry.unclaimed.cancel()
        tasks = [entry.task for entry in self._entries.values() if not entry.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
