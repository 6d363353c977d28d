"""Keeps the store in step with the sessions of this process. The store's failures end here: no running session dies of them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics
from orchestrator.store.base import SessionStore, StoredSession, StoreError
from orchestrator.store.seal import Seal, derive

LEASE_S = 10.0
RENEW_S = 2.5
RETRY_S = 1.0
"""Between two tries of a store that fails."""
OWNS_S = 0.5
"""A session that lost its agent does not wait longer for the store before it moves."""
Record = Callable[[], StoredSession]
_log = logging.getLogger(__name__)


class Ledger:
    """Writes behind: `note` returns at once, and a task writes what a session is then. It also keeps the leases.

    Args:
        store: not yet open.
        secret: from which the key of what is sealed is derived.
        owner_url: this orchestrator's public address, if it has one.
        metrics: where failures are counted.

    Attributes:
        owner: this process's name in the store.
        failing: whether the store's last call failed.
        seal: closes what is secret; there after `open`.
        on_lost: called with the id of a session that another orchestrator has taken; set before `run`.
    """

    def __init__(self, store: SessionStore, secret: str, owner_url: str | None, metrics: Metrics) -> None:
        self.store = store
        self._secret = secret
        self.owner = "orc_" + secrets.token_hex(6)
        self.owner_url = owner_url
        self.failing = False
        self.on_lost: Callable[[str], object] = lambda session_id: None
        self._metrics = metrics
        self._held: dict[str, Record] = {}
        self._left: dict[str, StoredSession] = {}
        self._dirty: set[str] = set()
        self._gone: set[str] = set()
        self._wake = asyncio.Event()
        self._renew_at = 0.0

    async def open(self) -> None:
        """Opens the store. Raises StoreError."""
        await self.store.open()
        self.seal = Seal(derive(self._secret, "sessions", self.store.deployment_id))

    async def run(self) -> None:
        """Writes and renews until it is cancelled."""
        while True:
            self._wake.clear()
            written = await self._write()
            if not written:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                async with asyncio.timeout(RENEW_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    # --- sessions of this process

    async def enter(self, session_id: str, record: Record, *, known: bool = False) -> None:
        """A session begins here, or goes on here that the store has `known` already.

        Raises ProblemError `store_unavailable` where the store is shared and fails: another orchestrator's reaper would take a
        new session's avatar for an orphan. Any other session goes on, and is written when that is possible again.
        """
        self._held[session_id] = record
        try:
            await self.store.claim(session_id, self.owner, LEASE_S)
            await self.store.save(record())
        except StoreError as error:
            self.failed(error)
            if self.store.shared and not known:
                del self._held[session_id]
                raise unavailable() from error
            self.note(session_id)

    def note(self, session_id: str) -> None:
        """Something of the session has changed."""
        if session_id in self._held:
            self._dirty.add(session_id)
            self._wake.set()

    def leave(self, session_id: str) -> None:
        """The session has ended: its last state is written, and its lease given back."""
        record = self._held.pop(session_id, None)
        self._dirty.discard(session_id)
        if record is not None:
            self._left[session_id] = record()
            self._wake.set()

    def forget(self, session_id: str) -> None:
        """A session nobody was told of: for everybody here it is gone at once."""
        if self._held.pop(session_id, None) is not None:
            self._dirty.discard(session_id)
            self._gone.add(session_id)
            self._wake.set()

    def freeze(self, session_id: str) -> None:
        """What the session is now is what will be handed over, whatever becomes of its parts until then."""
        record = self._held.get(session_id)
        if record is not None:
            last = record()
            self._held[session_id] = lambda: last

    async def hand_over(self, session_id: str) -> None:
        """Gives a running session up for another orchestrator, or the next process, to take at once."""
        record = self._held.pop(session_id, None)
        self._dirty.discard(session_id)
        if record is None:
            return
        last = record().model_copy(update={"owner": "", "owner_url": None})
        await self._try(self.store.release(session_id, self.owner))
        await self._try(self.store.save(last))

    def drop(self, session_id: str) -> None:
        """The session is another orchestrator's now: nothing more is written about it."""
        self._held.pop(session_id, None)
        self._dirty.discard(session_id)

    async def owns(self, session_id: str) -> bool:
        """Whether the session is still this process's; a store that fails is no reason to doubt it."""
        try:
            async with asyncio.timeout(OWNS_S):
                return await self.store.claim(session_id, self.owner, LEASE_S)
        except (StoreError, TimeoutError) as error:
            self.failed(error)
            return True

    async def flush(self) -> None:
        """Tries once to write what is not written."""
        await self._write()

    # --- sessions of others

    async def elsewhere(self, session_id: str) -> StoredSession | None:
        """What is known of a session that is not here. Raises ProblemError `store_unavailable`."""
        if session_id in self._gone:
            return None
        try:
            return await self.store.load(session_id)
        except StoreError as error:
            self.failed(error)
            raise unavailable() from error

    async def others(self, known: set[str]) -> list[StoredSession]:
        """Every other session, ended ones too; none while the store fails."""
        try:
            return [one for one in await self.store.sessions() if one.session_id not in known | self._gone]
        except StoreError as error:
            self.failed(error)
            return []

    async def holder(self, session_id: str) -> str | None:
        """Who owns a session now. Raises ProblemError `store_unavailable`."""
        try:
            return await self.store.holder(session_id)
        except StoreError as error:
            self.failed(error)
            raise unavailable() from error

    def failed(self, error: Exception) -> None:
        """A call of the store failed."""
        self._metrics.store_errors.inc()
        if not self.failing:
            _log.error("the store fails", extra={"error": str(error)})
        self.failing = True
        self._renew_at = 0.0  # the leases are the first thing to see to when it works again
        self._wake.set()

    # --- inside

    async def _write(self) -> bool:
        """Everything that is due. False when the store failed; what was not written is kept."""
        try:
            if time.monotonic() >= self._renew_at:
                await self._renew()
            while self._dirty:
                await self._save(next(iter(self._dirty)))
            while self._left:
                session_id, last = next(iter(self._left.items()))
                await self.store.save(last)
                await self.store.release(session_id, self.owner)
                self._left.pop(session_id, None)
            for session_id in list(self._gone):
                await self.store.delete(session_id)
                await self.store.release(session_id, self.owner)
                self._gone.discard(session_id)
        except StoreError as error:
            self.failed(error)
            return False
        if self.failing:
            _log.info("the store works again")
        self.failing = False
        return True

    async def _renew(self) -> None:
        """Prolongs every lease, and writes every record anew: counts grow, and a Redis that came back empty is filled again."""
        for session_id in list(self._held):
            if await self.store.claim(session_id, self.owner, LEASE_S):
                self._dirty.add(session_id)
            else:
                self._lost(session_id)
        self._renew_at = time.monotonic() + RENEW_S

    async def _save(self, session_id: str) -> None:
        self._dirty.discard(session_id)
        record = self._held.get(session_id)
        try:
            if record is not None and not await self.store.save(record()):
                self._lost(session_id)
        except StoreError:
            self._dirty.add(session_id)
            raise

    def _lost(self, session_id: str) -> None:
        if session_id in self._held:
            _log.warning("another orchestrator has taken the session", extra={"session_id": session_id})
            self.drop(session_id)
            self.on_lost(session_id)

    async def _try(self, call: Awaitable[object]) -> None:
        try:
            await call
        except StoreError as error:
            self.failed(error)


def unavailable() -> ProblemError:
    """For what cannot be known, or must not begin, while the store fails."""
    return ProblemError(
        ErrorCode.STORE_UNAVAILABLE, "The store of the sessions does not answer: try again.", retry_after_s=2
    )
