"""Keeps sessions beyond the life of a process: takes them over from one that ended, and removes what it left behind.

`surviving` opens the store and runs its loops; `SessionTakeover` takes over sessions without an owner, of this process's
predecessor or of an orchestrator that died; `Reaper` removes what dead processes left: avatars in rooms whose session is over, and
ingresses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from musetalk_agent.protocol.problems import ProblemError
from orchestrator.livekit_rooms import Ingresses, Rooms
from orchestrator.metrics import Metrics
from orchestrator.routes.context import Context
from orchestrator.session.journal import LEASE_S, SessionJournal
from orchestrator.session.manager import SessionManager
from orchestrator.session.model import ManagedSession
from orchestrator.settings import Settings
from orchestrator.store.session_store import SessionStore, StoredSession, StoreError
from orchestrator.store.sqlite import SqliteStore
from orchestrator.supervision import run_each, supervise

CLOSE_S = 20.0
"""How long each step of the end may take: sessions wait up to ten seconds for agents that do not answer."""


def make_store(settings: Settings) -> SessionStore:
    """The store that the settings name, not yet open."""
    keep_s = settings.session_options.keep_s
    if settings.redis_url is None:
        return SqliteStore(settings.store_path, keep_s)
    from orchestrator.store.redis_store import RedisStore  # the extra [redis]

    return RedisStore(settings.redis_url.get_secret_value(), keep_s)


async def check_store(settings: Settings) -> None:
    """Opens the store and closes it. Raises StoreError: better said before anything is served than by a traceback."""
    store = make_store(settings)
    try:
        await store.open()
    finally:
        await store.aclose()


@asynccontextmanager
async def surviving(context: Context) -> AsyncIterator[None]:
    """Sessions of earlier processes are there when it is entered. When it is left they have ended, or wait for the next process.

    Raises StoreError when the store cannot be opened.
    """
    journal, sessions = context.journal, context.sessions
    await journal.open(sessions.hand_over)
    context.events.listen(lambda event: journal.note(event.session_id))
    adoption = SessionTakeover(sessions, journal, context.metrics)
    reaper = Reaper(
        journal.store,
        context.rooms,
        context.ingresses,
        lambda: {session.session_id for session in sessions.registry.running()},
        context.metrics,
    )

    def loop(name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return asyncio.create_task(supervise(name, run, context.metrics), name=name)

    writing = [
        loop("leases", journal.keep_leases),
        loop("records", journal.write_behind),
        loop("films", context.films.expire),
    ]
    looking: list[asyncio.Task[None]] = []
    try:
        await adoption.first()
        looking += [loop("adoption", adoption.run), loop("reaper", reaper.run)]
        yield
    finally:
        await run_each(
            ("adoption and reaper", partial(_end, looking)),
            ("starts", context.starts.aclose),
            ("sessions", sessions.aclose),
            ("records", journal.flush),
            ("leases", partial(_end, writing)),
            ("store", journal.store.aclose),
            within_s=CLOSE_S,
        )


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


LOOK_EVERY_S = 1.0
LEASE_GRACE_S = 2.5
"""How long a lease stays away before its session is taken: an owner that could not renew it, for Redis was away, comes first."""
FIRST_LOOK_S = 3.0
"""How long the service waits, before it takes requests, for the first sessions to be there."""
_log = logging.getLogger(__name__)


class SessionTakeover:
    """Looks at the store: once where it is not shared, else every second."""

    def __init__(self, sessions: SessionManager, journal: SessionJournal, metrics: Metrics) -> None:
        self._sessions = sessions
        self._journal = journal
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
            await asyncio.wait(started, timeout=FIRST_LOOK_S)

    async def run(self) -> None:
        """Looks on until it is cancelled, or there is no use in it."""
        while self._journal.store.shared or self._journal.failing or self._again:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look()
            self._again = False

    async def _look(self) -> list[ManagedSession]:
        """Takes every session that is free. One that cannot be taken is logged, and the others are looked at all the same."""
        adopted: list[ManagedSession] = []
        store = self._journal.store
        try:
            running = [record for record in await store.sessions() if not record.ended]
            holders = await store.holders([record.session_id for record in running])
            for record in running:
                taken = await self._consider(record, holders[record.session_id])
                if taken is not None:
                    adopted.append(taken)
        except StoreError as error:
            self._journal.failed(error)
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
        session_id, store = record.session_id, self._journal.store
        if self._here(session_id):
            return None
        if holder is not None:
            self._vacant.pop(session_id, None)
            return None
        since = self._vacant.setdefault(session_id, time.monotonic())
        if store.shared and record.owner and time.monotonic() - since < LEASE_GRACE_S:
            return None
        if not await store.claim(session_id, self._journal.owner, LEASE_S):
            return None
        # Until the lease was ours another one may have had the session: moved it, ended it, given it back.
        fresh = await store.load(session_id)
        if fresh is not None and not fresh.ended and not self._here(session_id):
            return fresh
        if not self._sessions.registry.holds(session_id):
            await store.release(session_id, self._journal.owner)
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


SWEEP_EVERY_S = 60.0
CONFIRM_S = 10.0
"""Between the first look at an unknown participant and its removal (s): a store that comes back is filled again by then."""
MAX_ROOMS = 200
"""Rooms looked into in one sweep; the next sweep goes on behind them."""
_FAILURES = 3
"""Rooms in a row that LiveKit fails to list before the sweep is given up."""
_KINDS = ("avatar-ses_", "voice-ses_")
Participant = tuple[str, str]
"""Room and identity."""


class Reaper:
    """Looks through the rooms every minute.

    It touches only participants that carry this deployment's mark in their token, have an avatar's or a voice's identity, and
    belong to no session that the store or this process knows as running.

    Args:
        running: ids of the sessions that run in this process.
    """

    def __init__(
        self,
        store: SessionStore,
        rooms: Rooms,
        ingresses: Ingresses | None,
        running: Callable[[], set[str]],
        metrics: Metrics,
        *,
        second_look_s: float = CONFIRM_S,
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._ingresses = ingresses
        self._running = running
        self._metrics = metrics
        self._second_look_s = second_look_s
        self._last_room = ""

    async def run(self) -> None:
        """Sweeps until it is cancelled."""
        while True:
            try:
                await self.sweep()
            except (StoreError, ProblemError) as error:
                _log.warning("sweep given up", extra={"error": str(error)})
            await asyncio.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> None:
        """One look through the rooms and the records. Raises StoreError, and ProblemError `livekit_unavailable`."""
        records = await self._store.sessions()
        await self._remove_ingresses(records)
        strangers, ingresses = await self._strangers(records), await self._strange_ingresses(records)
        if not strangers and not ingresses:
            return
        await asyncio.sleep(self._second_look_s)
        known = self._known(await self._store.sessions())
        for room, identity in strangers:
            if _session_id(identity) not in known | self._running():
                _log.info("orphan removed", extra={"room": room, "identity": identity})
                await self._rooms.remove(room, identity)
                self._metrics.reaped.labels(kind=identity.partition("-")[0]).inc()
        for ingress_id, identity in ingresses.items():
            if self._ingresses is not None and _session_id(identity) not in known | self._running():
                if await self._ingresses.remove(ingress_id):
                    self._metrics.reaped.labels(kind="ingress").inc()

    async def _strange_ingresses(self, records: list[StoredSession]) -> dict[str, str]:
        """Identities by ingress id, of no session that runs: the answer to their making was lost, or that to their removal."""
        if self._ingresses is None:
            return {}
        ours = await self._ingresses.ours()
        known = self._known(records)
        return {ingress_id: who for ingress_id, who in ours.items() if _session_id(who) not in known}

    def _known(self, records: list[StoredSession]) -> set[str]:
        """Sessions that run, and those that cannot be read: they may run at an orchestrator of a newer version."""
        stored = {record.session_id for record in records if not record.ended}
        return self._running() | stored | self._store.reader.unreadable.keys()

    async def _strangers(self, records: list[StoredSession]) -> list[Participant]:
        known = self._known(records)
        found: list[Participant] = []
        failures = 0
        for room in self._turn(await self._rooms.names(), {record.room for record in records}):
            try:
                present = await self._rooms.participants(room, self._store.deployment_id)
                failures = 0
            except ProblemError:
                failures += 1
                if failures >= _FAILURES:
                    raise  # it is LiveKit, and not this room
                continue
            found += [(room, who) for who in present if who.startswith(_KINDS) and _session_id(who) not in known]
        return found

    def _turn(self, rooms: list[str], ours: set[str]) -> list[str]:
        """The rooms of this sweep: those of known sessions, then the others from where the last sweep stopped."""
        first = sorted(room for room in rooms if room in ours)[: MAX_ROOMS // 2]
        others = sorted(set(rooms) - set(first))
        others = [r for r in others if r > self._last_room] + [r for r in others if r <= self._last_room]
        turn = (first + others)[:MAX_ROOMS]
        self._last_room = turn[-1] if len(turn) < len(rooms) else ""
        return turn

    async def _remove_ingresses(self, records: list[StoredSession]) -> None:
        failures = 0
        for record in records:
            if record.ended and record.ingress_id and self._ingresses is not None:
                if not await self._ingresses.remove(record.ingress_id):
                    failures += 1
                    if failures >= _FAILURES:
                        return  # LiveKit does not answer: the next sweep asks again
                    continue
                await self._store.save(record.model_copy(update={"ingress_id": None}))
                self._metrics.reaped.labels(kind="ingress").inc()


def _session_id(identity: str) -> str:
    return identity.partition("-")[2]
