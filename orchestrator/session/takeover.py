"""Takes over sessions without an owner: of this process's predecessor, or of an orchestrator that died."""

from __future__ import annotations

import asyncio
import logging
import time

from orchestrator.metrics import Metrics
from orchestrator.session.journal import LEASE_S, SessionJournal
from orchestrator.session.manager import SessionManager
from orchestrator.session.model import ManagedSession
from orchestrator.store.session_store import StoredSession, StoreError

EVERY_S = 1.0
SECOND_LOOK_S = 2.5
"""How long a lease stays away before its session is taken: an owner that could not renew it, for Redis was away, comes first."""
FIRST_S = 3.0
"""How long the service waits, before it takes requests, for the first sessions to be there."""
_log = logging.getLogger(__name__)


class SessionTakeover:
    """Looks at the store: once where it is not shared, else every second."""

    def __init__(self, sessions: SessionManager, ledger: SessionJournal, metrics: Metrics) -> None:
        self._sessions = sessions
        self._ledger = ledger
        self._metrics = metrics
        self._vacant: dict[str, float] = {}
        self._again = False

    async def first(self) -> None:
        """The first look. Returns when what was found can be used, or after three seconds."""
        try:
            started = [session.started for session in await self._look()]
        except Exception:  # noqa: BLE001 - start boundary: the service begins, and `run` looks again
            self._again = True
            _log.exception("the first look at the store failed")
            return
        if started:
            await asyncio.wait(started, timeout=FIRST_S)

    async def run(self) -> None:
        """Looks on until it is cancelled, or there is no use in it."""
        while self._ledger.store.shared or self._ledger.failing or self._again:
            await asyncio.sleep(EVERY_S)
            await self._look()
            self._again = False

    async def _look(self) -> list[ManagedSession]:
        """Takes every session that is free. One that cannot be taken is logged, and the others are looked at all the same."""
        adopted: list[ManagedSession] = []
        store = self._ledger.store
        try:
            running = [record for record in await store.sessions() if not record.ended]
            holders = await store.holders([record.session_id for record in running])
            for record in running:
                taken = await self._consider(record, holders[record.session_id])
                if taken is not None:
                    adopted.append(taken)
        except StoreError as error:
            self._ledger.failed(error)
            self._vacant.clear()
            return adopted
        known = {record.session_id for record in running}
        self._vacant = {session_id: at for session_id, at in self._vacant.items() if session_id in known}
        return adopted

    async def _consider(self, record: StoredSession, holder: str | None) -> ManagedSession | None:
        """Takes one session if it is free. Raises StoreError."""
        try:
            fresh = await self._may_take(record, holder)
            return self._take(fresh) if fresh is not None else None
        except StoreError:
            raise
        except Exception:  # noqa: BLE001 - boundary of one session: whatever is wrong with it must not keep the others away
            self._metrics.adoptions.labels(outcome="lost").inc()
            _log.exception("a stored session could not be taken", extra={"session_id": record.session_id})
            return None

    async def _may_take(self, record: StoredSession, holder: str | None) -> StoredSession | None:
        """The record as it is now, when the session is free, and now this process's."""
        session_id, store = record.session_id, self._ledger.store
        if self._here(session_id):
            return None
        if holder is not None:
            self._vacant.pop(session_id, None)
            return None
        since = self._vacant.setdefault(session_id, time.monotonic())
        if store.shared and record.owner and time.monotonic() - since < SECOND_LOOK_S:
            return None
        if not await store.claim(session_id, self._ledger.owner, LEASE_S):
            return None
        # Until the lease was ours another one may have had the session: moved it, ended it, given it back.
        fresh = await store.load(session_id)
        if fresh is not None and not fresh.ended and not self._here(session_id):
            return fresh
        if not self._sessions.registry.holds(session_id):
            await store.release(session_id, self._ledger.owner)
        return None

    def _here(self, session_id: str) -> bool:
        """Whether nothing is to be taken: it is here, or this process ends."""
        return self._sessions.draining or self._sessions.registry.holds(session_id)

    def _take(self, record: StoredSession) -> ManagedSession:
        session = self._sessions.adopt(record)
        _log.warning("session taken over", extra={"session_id": record.session_id, "from": record.owner})
        session.started.add_done_callback(self._count)
        return session

    def _count(self, started: asyncio.Future[None]) -> None:
        lost = started.cancelled() or started.exception() is not None
        self._metrics.adoptions.labels(outcome="lost" if lost else "ok").inc()
