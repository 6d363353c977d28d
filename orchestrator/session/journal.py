"""Keeps the store in step with the sessions of this process, and converts a session to its stored record and back.

Failures of the store end here: no running session dies of them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel

from musetalk_agent.protocol.http import AvatarSource, Picture, PublisherMode, RtmpTarget, SessionState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.conversation.opened_conversation import OpenedConversation
from orchestrator.livekit_rooms import RoomIngress
from orchestrator.metrics import Metrics
from orchestrator.session.model import ManagedSession, SessionRequest
from orchestrator.store.session_store import Seal, SealBroken, SessionStore, StoredSession, StoreError, derive

LEASE_S = 10.0
RENEW_S = 2.5
RETRY_S = 1.0
"""Between two tries of a store that fails."""
OWNS_S = 0.5
"""A session that lost its agent does not wait longer for the store before it moves."""
HAND_OVER_S = 3.0
"""How long the end of a process waits for the store."""
STORED_S = 2.0
"""The answer to a stop does not wait longer for the store."""
BATCH = 64
"""Records written in one round trip."""
MAX_UNWRITTEN = 2000
"""Ended sessions that wait for a store that fails; past it the oldest are not written any more."""
_LEASES, _RECORDS, _READS = "leases", "records", "reads"
Record = Callable[[], StoredSession]
_Item = TypeVar("_Item")
_log = logging.getLogger(__name__)


class SessionJournal:
    """Writes behind: `note` returns at once, and a task writes what a session is then. Another task keeps the leases.

    The two share nothing but the store: however much there is to write, and however long that takes, leases are renewed in time.

    Args:
        store: not yet open.
        secret: from which the key of what is sealed is derived.
        owner_url: this orchestrator's public address, if it has one.
        metrics: where failures are counted.

    Attributes:
        owner: this process's name in the store.
        seal: closes what is secret; there after `open`.
    """

    def __init__(self, store: SessionStore, secret: str, owner_url: str | None, metrics: Metrics) -> None:
        self.store = store
        self._secret = secret
        self.owner = "orc_" + secrets.token_hex(6)
        self.owner_url = owner_url
        self._on_lost: Callable[[str], object] = lambda session_id: None
        self._metrics = metrics
        self._failing: set[str] = set()
        self._held: dict[str, Record] = {}
        self._left: dict[str, StoredSession] = {}
        self._dirty: dict[str, None] = {}
        self._gone: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._tried = asyncio.Condition()

    @property
    def failing(self) -> bool:
        """Whether the store failed when it was used last: for the leases, for records, or for a read."""
        return bool(self._failing)

    async def open(self, on_lost: Callable[[str], object] = lambda session_id: None) -> None:
        """Opens the store. Raises StoreError.

        `on_lost` is called with the id of each session that another orchestrator has taken.
        """
        self._on_lost = on_lost
        await self.store.open()
        self.seal = Seal(derive(self._secret, "sessions", self.store.deployment_id))
        self._metrics.store_unreadable.set_function(lambda: len(self.store.reader.unreadable))

    async def keep_leases(self) -> None:
        """Renews every lease every 2.5 s, all of them in one call, until it is cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            begun = clock()
            if await self._renew():
                await asyncio.sleep(max(0.0, begun + RENEW_S - clock()))
            else:
                await asyncio.sleep(RETRY_S)

    async def write_behind(self) -> None:
        """Writes what has changed until it is cancelled."""
        while True:
            self._wake.clear()
            if await self._write():
                await self._wake.wait()
            else:
                await asyncio.sleep(RETRY_S)

    # --- sessions of this process

    async def enter(self, session_id: str, record: Record, *, known: bool = False) -> bool:
        """A session begins here, or goes on here that the store has `known` already. False when it is another's meanwhile.

        Raises ProblemError `store_unavailable` where the store is shared and fails: another orchestrator's reaper would take a
        new session's avatar for an orphan. Any other session goes on, and is written when that is possible again.
        """
        self._held[session_id] = record
        try:
            ours = await self.store.save(record(), LEASE_S)
        except StoreError as error:
            self.failed(error)
            if self.store.shared and not known:
                self.forget(session_id)  # the store may have taken it before it failed
                raise unavailable() from error
            self.note(session_id)
            return True
        if not ours:
            self.drop(session_id)
        return ours

    def note(self, session_id: str) -> None:
        """Something of the session has changed."""
        if session_id in self._held:
            self._dirty[session_id] = None
            self._wake.set()

    def leave(self, session_id: str) -> None:
        """The session has ended: its last state is written, and its lease given back."""
        record = self._held.pop(session_id, None)
        self._dirty.pop(session_id, None)
        last = self._made(session_id, record) if record is not None else None
        if last is not None:
            self._left[session_id] = last
            _bound(self._left)
            self._wake.set()

    async def stored(self, session_id: str) -> None:
        """Waits until the end of a session that has left is written, `STORED_S` at most, and not while the store fails.

        A process that is killed later leaves nothing then that another would take up.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(STORED_S), self._tried:
                await self._tried.wait_for(lambda: session_id not in self._left or _RECORDS in self._failing)

    def forget(self, session_id: str) -> None:
        """Removes a session whose start failed: its id is unknown here at once, and the record is deleted later."""
        if self._held.pop(session_id, None) is not None:
            self._dirty.pop(session_id, None)
            self._gone[session_id] = None
            _bound(self._gone)
            self._wake.set()

    def freeze(self, session_id: str) -> None:
        """What the session is now is what will be handed over, whatever becomes of its parts until then."""
        record = self._held.get(session_id)
        last = self._made(session_id, record) if record is not None else None
        if last is not None:
            self._held[session_id] = lambda: last

    async def hand_over(self, session_id: str) -> None:
        """Gives a running session up for another orchestrator, or the next process, to take at once."""
        record = self._held.pop(session_id, None)
        self._dirty.pop(session_id, None)
        last = self._made(session_id, record) if record is not None else None
        if last is None:
            return
        try:
            async with asyncio.timeout(HAND_OVER_S):
                await self.store.give_up(last.model_copy(update={"owner": "", "owner_url": None}), self.owner)
        except (StoreError, TimeoutError) as error:
            self.failed(error)  # its lease expires: it is taken then

    def drop(self, session_id: str) -> None:
        """The session is another orchestrator's now: nothing more is written about it."""
        self._held.pop(session_id, None)
        self._dirty.pop(session_id, None)

    async def owns(self, session_id: str) -> bool:
        """Whether the session is still this process's; a store that fails is no reason to doubt it."""
        try:
            async with asyncio.timeout(OWNS_S):
                return not await self.store.renew([session_id], self.owner, LEASE_S)
        except (StoreError, TimeoutError) as error:
            self.failed(error)
            return True

    async def flush(self) -> None:
        """Tries once, for some seconds, to write what is not written."""
        try:
            async with asyncio.timeout(HAND_OVER_S):
                await self._write()
        except TimeoutError as error:
            self.failed(error)

    # --- sessions of others

    async def elsewhere(self, session_id: str) -> StoredSession | None:
        """What is known of a session that is not here. Raises ProblemError `store_unavailable`, also where it cannot be read."""
        if session_id in self._gone:
            return None
        try:
            record = await self.store.load(session_id)
        except StoreError as error:
            self.failed(error)
            raise unavailable() from error
        if record is None and session_id in self.store.reader.unreadable:
            text = f"What is stored of session {session_id[:64]} cannot be read by this orchestrator: ask the one that runs it."
            raise ProblemError(ErrorCode.STORE_UNAVAILABLE, text, retry_after_s=2)
        return record

    async def others(self, known: set[str]) -> list[StoredSession]:
        """Every other session that can be read, ended ones too; none while the store fails."""
        try:
            return [one for one in await self.store.sessions() if one.session_id not in known | self._gone.keys()]
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

    def failed(self, error: Exception, what: str = _READS) -> None:
        """A call of the store failed."""
        self._metrics.store_errors.inc()
        if not self._failing:
            _log.error("the store fails", extra={"error": str(error) or type(error).__name__, "call": what})
        self._failing |= {what, _LEASES}  # it works again only once the leases were renewed

    def _works(self, *what: str) -> None:
        if self._failing and not self._failing.difference(what):
            _log.info("the store works again")
        self._failing.difference_update(what)

    # --- inside

    async def _renew(self) -> bool:
        """Prolongs every lease; then every record is written anew: counts grow, and a Redis that came back empty is filled again.

        False when the store failed.
        """
        held = dict(self._held)
        try:
            lost = await self.store.renew(list(held), self.owner, LEASE_S)
        except StoreError as error:
            self.failed(error, _LEASES)
            return False
        self._works(_LEASES, _READS)
        for session_id, record in held.items():
            if self._held.get(session_id) is not record:
                continue  # it has ended here meanwhile, or began anew: the answer is not about that
            if session_id in lost:
                self._lost(session_id)
            else:
                self.note(session_id)
        return True

    async def _write(self) -> bool:
        """Everything that is due. False when the store failed; what was not written is kept."""
        works = await self._write_due()
        async with self._tried:
            self._tried.notify_all()
        return works

    async def _write_due(self) -> bool:
        due = bool(self._dirty or self._left or self._gone)
        try:
            while self._dirty:
                await self._save(list(self._dirty)[:BATCH])
            while self._left:
                await self._each(self._left, lambda last: self.store.give_up(last, self.owner))
            while self._gone:
                await self._each({each: each for each in self._gone}, self.store.delete, self._gone)
        except StoreError as error:
            self.failed(error, _RECORDS)
            return False
        self._works(_RECORDS, *([_READS] if due else []))
        return True

    async def _save(self, session_ids: list[str]) -> None:
        records: dict[str, tuple[Record, StoredSession]] = {}
        for session_id in session_ids:
            self._dirty.pop(session_id, None)
            record = self._held.get(session_id)
            made = self._made(session_id, record) if record is not None else None
            if record is not None and made is not None:
                records[session_id] = record, made
        try:
            refused = await self.store.save_all([made for _, made in records.values()])
        except StoreError:
            for session_id in records:
                if session_id in self._held:
                    self._dirty[session_id] = None
            raise
        for session_id in refused:
            if self._held.get(session_id) is records[session_id][0]:
                self._lost(session_id)

    async def _each(
        self,
        waiting: dict[str, _Item],
        call: Callable[[_Item], Awaitable[object]],
        done: dict[str, None] | None = None,
    ) -> None:
        """Calls the store for some of what waits, at the same time, and takes out what is done. Raises StoreError."""
        some = list(waiting.items())[:BATCH]
        results = await asyncio.gather(*(call(item) for _, item in some), return_exceptions=True)
        for (session_id, item), result in zip(some, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            if waiting.get(session_id) is item:
                (waiting if done is None else done).pop(session_id, None)

    def _made(self, session_id: str, record: Record) -> StoredSession | None:
        """The record; None where it cannot be made, which is one session's trouble and not the others'."""
        try:
            return record()
        except Exception:  # noqa: BLE001 - boundary of one session: a bug in its view must not stop the others' records
            self._metrics.store_skipped.inc()
            _log.exception("what is to be stored of a session cannot be made", extra={"session_id": session_id})
            return None

    def _lost(self, session_id: str) -> None:
        if session_id in self._held:
            _log.warning("another orchestrator has taken the session", extra={"session_id": session_id})
            self.drop(session_id)
            self._on_lost(session_id)


def _bound(kept: dict[str, Any]) -> None:
    while len(kept) > MAX_UNWRITTEN:
        del kept[next(iter(kept))]


def unavailable() -> ProblemError:
    """For what cannot be known, or must not begin, while the store fails."""
    return ProblemError(
        ErrorCode.STORE_UNAVAILABLE, "The store of the sessions does not answer: try again.", retry_after_s=2
    )


class Sealed(BaseModel):
    """What only this deployment may read: addresses carry keys."""

    order: SessionRequest
    publisher_mode: PublisherMode
    ingress_url: str | None = None


def to_record(session: ManagedSession, journal: SessionJournal) -> StoredSession:
    """The session as it is now."""
    live, ingress = session.live, session.ingress
    adopting = session.adopted and session.base_state is SessionState.STARTING
    sealed = Sealed(
        order=session.order,
        publisher_mode=session.publisher_mode,
        ingress_url=ingress.target.url if ingress is not None else None,
    )
    return StoredSession(
        session_id=session.session_id,
        identity=session.identity,
        room=session.order.room,
        key=session.order.key,
        public_token=session.order.public_token,
        sealed=journal.seal.encrypt(sealed.model_dump_json()),
        agent_url=session.lease.name if session.lease is not None else None,
        created_at=session.created_at,
        expires_at=session.expires_at,
        state=SessionState.RECOVERING if adopting else session.state,
        ended_at=session.ended_at,
        ingress_id=ingress.ingress_id if ingress is not None else None,
        owner=journal.owner,
        owner_url=journal.owner_url,
        moves=session.moves,
        progress=live.progress() if live is not None else session.progress,
        talk=journal.seal.encrypt(session.talk.pack()) if session.talk is not None else "",
        view=session.view(),
    )


def from_record(record: StoredSession, seal: Seal) -> ManagedSession:
    """The session to go on with; when its order cannot be read, to end."""
    order = SessionRequest(
        room=record.room, avatar=AvatarSource(), picture=Picture(), key=record.key, public_token=record.public_token
    )
    mode, ingress_url, readable = order.publisher, None, True
    try:
        sealed = Sealed.model_validate_json(seal.decrypt(record.sealed))
        order, mode, ingress_url = sealed.order, sealed.publisher_mode, sealed.ingress_url
    except (SealBroken, ValueError):
        readable = False
    session = ManagedSession(
        session_id=record.session_id,
        order=order,
        expires_at=record.expires_at,
        started=asyncio.get_running_loop().create_future(),
        created_at=record.created_at,
        placed=True,
        moves=record.moves,
        adopted=True,
        readable=readable,
        progress=record.progress,
    )
    session.publisher_mode = mode
    if record.talk:
        with suppress(SealBroken, ValueError):
            session.talk = OpenedConversation.unpack(record.session_id, seal.decrypt(record.talk))
    if record.ingress_id is not None:
        target = RtmpTarget(url=ingress_url or "rtmp://unknown", ingress=True)
        session.ingress = RoomIngress(record.ingress_id, target)
    return session
