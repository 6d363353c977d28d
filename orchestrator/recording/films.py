"""The recordings of all sessions: begins and ends them, serves what is stored, and deletes it after its time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from musetalk_agent.protocol.http import AgentRecordingRequest, FilmOptions, RecordingState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.audio.heard_speech import HeardSpeech
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.recording.film_collector import FilmCollector
from orchestrator.recording.film_store import FilmIndex, FilmOf, FilmStore, StoreFailed, is_name
from orchestrator.recording.growing_film import GrowingFilm
from orchestrator.recording.room_films import RoomEgress, RoomFilms

READY = "recording.ready"
"""Event: a film has stopped growing, and all of it can be read."""
END_S = 8.0
"""The end of a session, or of a recording, does not wait longer for the last fragments."""
EXPIRE_EVERY_S = 3600.0
_STALE_S = 3600.0
"""A film that no process here records, and none has touched for so long, was left by one that was killed."""
_DAY_S = 24 * 3600.0
_CHUNK = 256 << 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FilmOwner:
    """Whose film it is: the session, the caller that started it, and the public token, where one was used."""

    session_id: str
    key: str
    public_token: str = ""


@dataclass(eq=False)
class _Live:
    """A film of a session that runs here, and its speech. `collector` fetches it while it is recorded; `changing` is held while
    that changes.
    """

    film: GrowingFilm
    collector: FilmCollector | None = None
    heard: HeardSpeech | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def filming(self) -> bool:
        """Whether agents are to record it."""
        return self.film.index.state is RecordingState.RECORDING and self.film.index.of is FilmOf.AVATAR


class Films:
    """Every film. One event loop.

    Args:
        store: where films are kept.
        days: how long a film is kept after it changed last.
        egress: records rooms.
    """

    def __init__(
        self,
        store: FilmStore,
        agents: AgentClient,
        events: EventBus,
        metrics: Metrics,
        days: float,
        egress: RoomEgress,
    ) -> None:
        self.store, self._days, self._egress = store, days, egress
        self._rooms = RoomFilms(egress, lambda film: self._close(_Live(film)))
        self._agents, self._events, self._metrics = agents, events, metrics
        self._live: dict[str, _Live] = {}
        metrics.films.set_function(lambda: sum(live.collector is not None for live in self._live.values()))

    async def open(self) -> None:
        """Prepares what it needs of LiveKit; does not connect yet."""
        await self._egress.open()

    async def aclose(self) -> None:
        """Stores what waits; films of sessions that go on elsewhere go on there."""
        await self._rooms.aclose()
        await self._egress.aclose()
        lives, self._live = list(self._live.values()), {}
        ending = (live.collector.aclose() for live in lives if live.collector is not None)
        await asyncio.gather(*ending, return_exceptions=True)
        await self.store.aclose()

    @property
    def choices(self) -> list[FilmOf]:
        """What this deployment records."""
        return [FilmOf.AVATAR, *([FilmOf.ROOM] if self._egress.there else [])]

    # --- what sessions say

    def options(self, session_id: str) -> FilmOptions | None:
        """How an agent that takes the session is to record it; None: not at all."""
        live = self._live.get(session_id)
        if live is None or not live.filming:
            return None
        index = live.film.index
        return FilmOptions(width=index.width, height=index.height, skip_idle=index.skip_idle)

    def expect(self, owner: FilmOwner, *, skip_idle: bool) -> None:
        """The session that is about to start is recorded from its first frame on."""
        now = time.time()
        index = FilmIndex(
            session_id=owner.session_id,
            key=owner.key,
            public_token=owner.public_token,
            skip_idle=skip_idle,
            created_at=now,
            updated_at=now,
        )
        self._live[owner.session_id] = _Live(GrowingFilm(index, self.store))

    def follow(self, session_id: str, lease: AgentLease, width: int, height: int) -> None:
        """An agent has taken the session, whose frames have that size, and records it where `options` says so."""
        live = self._live.get(session_id)
        if live is None or not live.filming:
            return
        index = live.film.index
        index.width, index.height = index.width or width, index.height or height
        if live.collector is None:
            live.collector = FilmCollector(live.film, self._agents, self._metrics, lease, live.heard)
        else:
            live.collector.follow(lease)

    def hear(self, session_id: str, heard: HeardSpeech) -> None:
        """What the session says from now on is there: its film gets from it what no agent has of it."""
        live = self._live.get(session_id)
        if live is not None:
            live.heard, heard.kept = heard, True
            if live.collector is not None:
                live.collector.heard = heard

    async def resume(self, session_id: str, lease: AgentLease) -> None:
        """Another process had the session: its film goes on where the store has it. A store that fails is logged."""
        try:
            index = await self._load(session_id)
        except ProblemError:
            return
        if index is not None and index.of is FilmOf.ROOM:
            self._live[session_id] = _Live(GrowingFilm(index, self.store))
        elif index is not None and index.width and index.height:
            self._live[session_id] = _Live(GrowingFilm(index, self.store))
            self.follow(session_id, lease, index.width, index.height)

    async def finish(self, session_id: str) -> None:
        """The session has ended: fetches what is left, and closes the film. Cancelling stores what is there."""
        live = self._live.get(session_id)
        if live is None:
            return
        try:
            async with live.changing:
                collector, live.collector = live.collector, None
                if collector is not None:
                    await collector.finish(END_S)
                if live.film.index.of is FilmOf.ROOM:
                    await self._end_room(live)
                elif live.film.index.state is RecordingState.RECORDING:
                    await self._close(live)
        finally:
            self._live.pop(session_id, None)

    async def leave(self, session_id: str) -> None:
        """Another process goes on with the session and its film."""
        live = self._live.pop(session_id, None)
        if live is not None and live.collector is not None:
            await live.collector.aclose()

    # --- what callers ask for

    async def record(self, owner: FilmOwner, lease: AgentLease, heard: HeardSpeech, *, skip_idle: bool | None) -> None:
        """Begins to record the avatar of a running session, or goes on. `heard` is what it says. Raises ProblemError; it is then
        not recorded.
        """
        live = await self._known(owner)
        async with live.changing:
            index = live.film.index
            if not _begins(index, FilmOf.AVATAR):
                return
            index.skip_idle = index.skip_idle if skip_idle is None else skip_idle
            self.hear(owner.session_id, heard)
            live.film.say([], heard.end)  # what was said before is not recorded
            await self._begin(live, lease)

    async def record_room(self, owner: FilmOwner, room: str) -> None:
        """Begins to record the room of a running session, by LiveKit Egress. Raises ProblemError; it is then not recorded."""
        live = await self._known(owner)
        async with live.changing:
            if not _begins(live.film.index, FilmOf.ROOM):
                return
            try:
                await self._rooms.begin(live.film, room)
            except StoreFailed as error:
                raise self._failed(owner.session_id, error) from error

    async def _known(self, owner: FilmOwner) -> _Live:
        live = self._live.get(owner.session_id)
        if live is None:
            index = await self._load(owner.session_id)
            live = self._live.get(owner.session_id)  # another caller may have asked meanwhile
            if live is None:
                self.expect(owner, skip_idle=False)
                live = self._live[owner.session_id]
                live.film.index.state = RecordingState.NONE
                if index is not None:
                    live.film = GrowingFilm(index, self.store)
        return live

    async def _begin(self, live: _Live, lease: AgentLease) -> None:
        index = live.film.index
        request = AgentRecordingRequest(
            state=RecordingState.RECORDING, width=index.width, height=index.height, skip_idle=index.skip_idle
        )
        await self._agents.record(lease, index.session_id, request)
        index.state = RecordingState.RECORDING
        live.collector = FilmCollector(live.film, self._agents, self._metrics, lease, live.heard)

    async def stop(self, session_id: str, lease: AgentLease | None) -> None:
        """Ends the recording; returns when all of the film can be read. Idempotent.

        Raises ProblemError `recording_not_found` where there is none, and what the agent raises.
        """
        live = self._live.get(session_id)
        if live is None or live.film.index.state is RecordingState.NONE:
            raise _not_found(session_id)
        async with live.changing:
            if live.film.index.state is not RecordingState.RECORDING:
                return
            if live.film.index.of is FilmOf.ROOM:
                await self._rooms.end(live.film, END_S)
            else:
                await self._end(live, lease)
                await self._close(live)

    async def _end(self, live: _Live, lease: AgentLease | None) -> None:
        session_id = live.film.index.session_id
        if lease is not None:
            position = await self._agents.record(lease, session_id, AgentRecordingRequest(state=RecordingState.STOPPED))
            if live.collector is not None and not await live.collector.reaches(
                position.log_id, position.entries, END_S
            ):
                _log.warning("the end of a film is missing", extra={"session_id": session_id})
        collector, live.collector = live.collector, None
        if collector is not None:
            await (collector.aclose() if lease is not None else collector.finish(END_S))

    async def _end_room(self, live: _Live) -> None:
        """The session has ended. An egress that cannot be ended now ends with the room."""
        if live.film.index.state is not RecordingState.RECORDING:
            return
        try:
            await self._rooms.end(live.film, END_S)
        except ProblemError as error:
            self._rooms.fetch(live.film)
            _log.warning("a room is recorded on", extra={"session_id": live.film.index.session_id, "error": str(error)})

    async def _close(self, live: _Live) -> None:
        """The film does not grow any more: it is stored, and that is reported."""
        index = live.film.index
        index.state = RecordingState.STOPPED
        if not live.film.size and index.of is FilmOf.AVATAR:
            return
        try:
            await live.film.flush()
        except StoreFailed as error:
            self._failed(index.session_id, error)
        if not live.film.size:
            return
        lost = self._metrics.film_lost
        lost.labels(kind="picture").inc(index.dropped_frames)
        lost.labels(kind="sound").inc(index.lost_audio)
        lost.labels(kind="fragment").inc(index.lost)
        self._events.publish(index.session_id, READY, {**_figures(live.film), "dropped_frames": index.dropped_frames})

    async def delete(self, session_id: str, lease: AgentLease | None) -> None:
        """Removes the film. One that is being recorded begins again, empty.

        Raises ProblemError `recording_not_found`, `store_unavailable`, and what the agent raises.
        """
        live = self._live.get(session_id)
        if live is None:
            if await self._load(session_id) is None:
                raise _not_found(session_id)
            await self._remove(session_id)
            return
        async with live.changing:
            index = live.film.index
            if index.of is FilmOf.ROOM:
                await self._delete_room(live)
                return
            goes_on = index.state is RecordingState.RECORDING
            if goes_on:
                await self._end(live, lease)
            await self._remove(session_id)
            fresh = FilmIndex(
                **index.model_dump(include={"session_id", "key", "public_token", "skip_idle", "created_at"}),
                state=RecordingState.NONE,
                log_id=live.film.log_id,
                entry=live.film.entry,
            )
            live.film = GrowingFilm(fresh, self.store)
            if live.heard is not None:
                live.film.say([], live.heard.end)
            if goes_on and lease is not None:
                await self._begin(live, lease)

    async def _delete_room(self, live: _Live) -> None:
        """One that is being recorded is ended: Egress cannot begin again in the same file."""
        index = live.film.index
        if index.state is RecordingState.RECORDING:
            await self._rooms.end(live.film, END_S)
        if not (live.film.size or index.error):
            text = "Egress is still writing the film of the room: try again in a moment."
            raise ProblemError(ErrorCode.RECORDING_UNAVAILABLE, text, retry_after_s=5)
        await self._remove(index.session_id)
        fresh = FilmIndex(
            **index.model_dump(include={"session_id", "key", "public_token", "created_at"}), state=RecordingState.NONE
        )
        live.film = GrowingFilm(fresh, self.store)

    async def find(self, session_id: str) -> GrowingFilm | None:
        """The film, to read; None where there is none. Raises ProblemError `store_unavailable`."""
        live = self._live.get(session_id)
        if live is not None:
            return live.film
        index = await self._load(session_id)
        if index is None:
            return None
        if index.state is RecordingState.RECORDING and index.updated_at < time.time() - _STALE_S:
            index.state = RecordingState.STOPPED
        film = GrowingFilm(index, self.store)
        if index.egress_id and index.state is RecordingState.STOPPED:
            self._rooms.fetch(film)
        return film

    async def read(self, film: GrowingFilm, begin: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `begin` to `end` in portions. Raises StoreFailed; cancelling is safe."""
        while begin < end:
            data = await film.read(begin, min(end, begin + _CHUNK))
            if not data:
                raise StoreFailed(f"a film of {film.size} bytes ends at byte {begin}")
            yield data
            begin += len(data)

    async def expire(self) -> None:
        """Removes films that are too old, every hour; never returns."""
        while True:
            try:
                for name in await self.store.expired(time.time() - self._days * _DAY_S):
                    if name not in self._live:
                        await self.store.delete(name)
                        _log.info("a film has expired", extra={"session_id": name})
            except StoreFailed as error:
                self._failed("", error)
            await asyncio.sleep(EXPIRE_EVERY_S)

    # --- the store

    async def _load(self, session_id: str) -> FilmIndex | None:
        if not is_name(session_id):
            return None
        try:
            return await self.store.load(session_id)
        except StoreFailed as error:
            raise self._failed(session_id, error) from error

    async def _remove(self, session_id: str) -> None:
        try:
            await self.store.delete(session_id)
        except StoreFailed as error:
            raise self._failed(session_id, error) from error

    def _failed(self, session_id: str, error: StoreFailed) -> ProblemError:
        self._metrics.film_store_errors.inc()
        _log.error("the store of films failed", extra={"session_id": session_id, "error": str(error)[:200]})
        return ProblemError(
            ErrorCode.STORE_UNAVAILABLE,
            "The store of films does not answer; see RECORDING_DIR and RECORDING_URL, and try again.",
            retry_after_s=5,
        )


def view(film: GrowingFilm | None, url: str | None, choices: list[FilmOf]) -> dict[str, object]:
    """Body of `GET /session/{id}/recording`."""
    can = {"choices": [each.value for each in choices]}
    if film is None:
        return {"state": RecordingState.NONE.value, "seconds": 0.0, "bytes": 0, "parts": 0, "url": None, **can}
    index = film.index
    return {
        "state": index.state.value,
        **_figures(film),
        "url": url if film.size else None,
        "skip_idle": index.skip_idle,
        "width": index.width,
        "height": index.height,
        "dropped_frames": index.dropped_frames,
        "lost_fragments": index.lost,
        "of": index.of.value,
        "error": index.error or None,
        **can,
    }


def _figures(film: GrowingFilm) -> dict[str, object]:
    return {"seconds": round(film.seconds, 3), "bytes": film.size, "parts": film.index.parts}


def _begins(index: FilmIndex, of: FilmOf) -> bool:
    """False where it is recorded already. A session has one film: of its avatar, or one of its room, which cannot be gone on with.

    Raises ProblemError `session_conflict` where it has the other one.
    """
    there = index.state is RecordingState.RECORDING or index.size > 0 or bool(index.egress_id)
    goes_on = index.of is of and (of is FilmOf.AVATAR or index.state is RecordingState.RECORDING)
    if goes_on or not there:
        return index.state is not RecordingState.RECORDING
    text = f"The session has a film of its {index.of.value} already: fetch it, then delete it, and begin again."
    raise ProblemError(ErrorCode.SESSION_CONFLICT, text, field="of", value=of.value)


def _not_found(session_id: str) -> ProblemError:
    return ProblemError(
        ErrorCode.RECORDING_NOT_FOUND,
        f"Session {session_id[:64]!r} has no recording: begin one with record at the start, or POST /session/ID/recording.",
        value=session_id[:64],
    )
