"""Sessions by id, and answers by idempotency key. Both bounded."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.session.record import Session

MAX_ENDED = 1000
MAX_KEYS = 4096
_Answer = TypeVar("_Answer")


class SessionRegistry:
    """Every running session, and the ended ones for a while."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._sessions: dict[str, Session] = {}

    def add(self, session: Session) -> None:
        """A new session."""
        self._prune()
        self._sessions[session.session_id] = session

    def forget(self, session: Session) -> None:
        """A session nobody was told of."""
        self._sessions.pop(session.session_id, None)

    def get(self, session_id: str) -> Session:
        """Raises ProblemError `session_not_found`."""
        self._prune()
        session = self._sessions.get(session_id)
        if session is None:
            raise self.unknown(session_id)
        return session

    def holds(self, session_id: str) -> bool:
        """Whether the session is here, ended or not."""
        self._prune()
        return session_id in self._sessions

    def unknown(self, session_id: str) -> ProblemError:
        """The error for a session that is not here, or not for this caller."""
        return ProblemError(
            ErrorCode.SESSION_NOT_FOUND,
            f"There is no session {session_id[:64]!r}; ended ones are forgotten after {self._keep_s / 60:g} minutes.",
        )

    def all(self) -> list[Session]:
        """Oldest first."""
        self._prune()
        return list(self._sessions.values())

    def running(self) -> list[Session]:
        """Those that have not ended."""
        return [session for session in self._sessions.values() if not session.ended]

    def _prune(self) -> None:
        ended = [session for session in self._sessions.values() if session.ended]
        for index, session in enumerate(ended):
            age = time.time() - (session.ended_at or 0.0)
            if age > self._keep_s or index < len(ended) - MAX_ENDED:
                del self._sessions[session.session_id]


@dataclass
class _Entry(Generic[_Answer]):
    body: str
    task: asyncio.Task[_Answer]


class Idempotency(Generic[_Answer]):
    """Runs an operation once per key: the same key with the same body gets the same answer, also at the same time."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry[_Answer]] = OrderedDict()

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._entries)

    async def run(self, key: str | None, body: str, operation: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """The operation's answer, or the one it gave before. It goes on when the caller is cancelled; failures are forgotten.

        Raises ProblemError `idempotency_conflict` for a key that was used with another body, and what the operation raises.
        """
        if key is None:
            return await operation()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._begin(key, body, operation)
        elif entry.body != body:
            raise ProblemError(
                ErrorCode.IDEMPOTENCY_CONFLICT,
                "This Idempotency-Key was used with another body: use a new key for a new request.",
                field="Idempotency-Key",
            )
        return await asyncio.shield(entry.task)

    def _begin(self, key: str, body: str, operation: Callable[[], Awaitable[_Answer]]) -> _Entry[_Answer]:
        async def call() -> _Answer:
            return await operation()

        entry = self._entries[key] = _Entry(body, asyncio.create_task(call(), name="idempotent-start"))
        entry.task.add_done_callback(lambda task: self._settle(key, task))
        while len(self._entries) > MAX_KEYS:
            self._entries.popitem(last=False)
        return entry

    def _settle(self, key: str, task: asyncio.Task[_Answer]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._entries.pop(key, None)

    async def aclose(self) -> None:
        """Cancels operations that run."""
        tasks = [entry.task for entry in self._entries.values() if not entry.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
