"""Removes what dead processes left behind: avatars in rooms whose session is over, and ingresses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from musetalk_agent.protocol.problems import ProblemError
from orchestrator.livekit_rooms import Rooms
from orchestrator.metrics import Metrics
from orchestrator.store.session_store import SessionStore, StoredSession, StoreError

EVERY_S = 60.0
SECOND_LOOK_S = 10.0
"""Between the first look at a participant that nobody knows, and its removal: a store that comes back is filled again by then."""
MAX_ROOMS = 200
"""Rooms looked into in one sweep; the next sweep goes on behind them."""
_FAILURES = 3
"""Rooms in a row that LiveKit does not tell about before the sweep is given up."""
_KINDS = ("avatar-ses_", "voice-ses_")
_log = logging.getLogger(__name__)
Participant = tuple[str, str]
"""Room and identity."""


class IngressRemover(Protocol):
    """Where ingresses are listed and removed."""

    async def ours(self) -> dict[str, str]:
        """The identities of this deployment's ingresses by ingress id; none while LiveKit does not answer."""
        ...

    async def remove(self, ingress_id: str) -> bool:
        """Returns whether it is gone; without effect when there is none."""
        ...


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
        ingresses: IngressRemover | None,
        running: Callable[[], set[str]],
        metrics: Metrics,
        *,
        second_look_s: float = SECOND_LOOK_S,
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
            await asyncio.sleep(EVERY_S)

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
