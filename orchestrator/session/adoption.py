"""Takes over sessions that nobody owns any more: of this process's predecessor, or of an orchestrator that died."""

from __future__ import annotations

import asyncio
import logging
import time

from orchestrator.metrics import Metrics
from orchestrator.session.ledger import LEASE_S, Ledger
from orchestrator.session.lifecycle import SessionLifecycle
from orchestrator.session.record import Session
from orchestrator.store.base import StoredSession, StoreError

EVERY_S = 1.0
SECOND_LOOK_S = 2.5
"""How long a lease stays away before its session is taken: an owner that could not renew it, for Redis was away, comes first."""
FIRST_S = 3.0
"""How long the service waits, before it takes requests, for the first sessions to be there."""
_log = logging.getLogger(__name__)


class Adoption:
    """Looks at the store, once where nobody shares it, else every second."""

    def __init__(self, sessions: SessionLifecycle, ledger: Ledger, metrics: Metrics) -> None:
        self._sessions = sessions
        self._ledger = ledger
        self._metrics = metrics
        self._vacant: dict[str, float] = {}

    async def first(self) -> None:
        """The first look. Returns when what was found can be used, or after three seconds."""
        started = [session.started for session in await self._look()]
        if started:
            await asyncio.wait(started, timeout=FIRST_S)

    async def run(self) -> None:
        """Looks on until it is cancelled, or there is no use in it."""
        while self._ledger.store.shared or self._ledger.failing:
            await asyncio.sleep(EVERY_S)
            await self._look()

    async def _look(self) -> list[Session]:
        adopted: list[Session] = []
        try:
            records = await self._ledger.store.sessions()
            adopted += [self._take(record) for record in records if not record.ended and await self._may_take(record)]
        except StoreError as error:
            self._ledger.failed(error)
            self._vacant.clear()
            return adopted
        running = {record.session_id for record in records if not record.ended}
        self._vacant = {session_id: at for session_id, at in self._vacant.items() if session_id in running}
        return adopted

    async def _may_take(self, record: StoredSession) -> bool:
        """Whether the session is free, and now this process's."""
        session_id, store = record.session_id, self._ledger.store
        if self._sessions.draining or self._sessions.registry.holds(session_id):
            return False
        if await store.holder(session_id) is not None:
            self._vacant.pop(session_id, None)
            return False
        since = self._vacant.setdefault(session_id, time.monotonic())
        if store.shared and record.owner and time.monotonic() - since < SECOND_LOOK_S:
            return False
        return await store.claim(session_id, self._ledger.owner, LEASE_S)

    def _take(self, record: StoredSession) -> Session:
        session = self._sessions.adopt(record)
        _log.warning("session taken over", extra={"session_id": record.session_id, "from": record.owner})
        session.started.add_done_callback(self._count)
        return session

    def _count(self, started: asyncio.Future[None]) -> None:
        self._metrics.adoptions.labels(outcome="lost" if started.exception() else "ok").inc()
