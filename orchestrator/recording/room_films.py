"""Films of whole rooms: LiveKit Egress makes them, and when one has ended its file goes into the store of films."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from musetalk_agent.protocol.http import RecordingState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.recording.film_store import FilmOf, StoreFailed
from orchestrator.recording.growing_film import GrowingFilm
from orchestrator.recording.room_egress import EgressEnd, RoomEgress

LOOK_S = 0.5
_WRITES_S = 300.0
"""Egress may need so long to write a film when it has been stopped; then it is given up."""
_CHUNK = 4 << 20
_log = logging.getLogger(__name__)


class RoomFilms:
    """One egress for each film. One event loop.

    Args:
        egress: LiveKit's.
        closed: called with a film that has ended and is stored, or has failed.
    """

    def __init__(self, egress: RoomEgress, closed: Callable[[GrowingFilm], Awaitable[None]]) -> None:
        self._egress, self._closed = egress, closed
        self._fetching: dict[str, asyncio.Task[None]] = {}

    async def aclose(self) -> None:
        """Fetches nothing more; what is left is fetched when a client asks for it."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def begin(self, film: GrowingFilm, room: str) -> None:
        """Begins to record the room. Raises ProblemError `recording_unavailable`, and StoreFailed; nothing is recorded then."""
        index = film.index
        egress_id = await self._egress.begin(index.session_id, room)
        index.of, index.egress_id, index.state, index.error = FilmOf.ROOM, egress_id, RecordingState.RECORDING, ""
        try:
            await film.flush()  # another process has to find it
        except BaseException:  # cancelled, too: an egress that no film knows would record until its room is empty
            index.of, index.egress_id, index.state = FilmOf.AVATAR, "", RecordingState.NONE
            await asyncio.shield(self._abandon(egress_id))
            raise

    async def _abandon(self, egress_id: str) -> None:
        try:
            await self._egress.stop(egress_id)
        except ProblemError as error:
            _log.error("an egress was not stopped", extra={"egress_id": egress_id, "error": error.detail[:200]})

    async def end(self, film: GrowingFilm, within_s: float) -> None:
        """Ends it, and waits so long for the film to be stored; later it is stored all the same.

        Raises ProblemError `recording_unavailable` where LiveKit does not answer: it is recorded on.
        """
        await self._egress.stop(film.index.egress_id)
        film.index.state = RecordingState.STOPPED
        with suppress(StoreFailed):  # it is tried again when the film is there
            await film.flush()
        self.fetch(film)
        await asyncio.wait({self._fetching[film.index.session_id]}, timeout=within_s)

    def fetch(self, film: GrowingFilm) -> None:
        """Stores what Egress has written, as soon as it has ended, unless that is done or under way."""
        name = film.index.session_id
        if film.index.of is not FilmOf.ROOM or film.size or film.index.error or name in self._fetching:
            return
        task = asyncio.create_task(self._fetch(film), name=f"room-film-{name}")
        self._fetching[name] = task
        task.add_done_callback(lambda _: self._fetching.pop(name, None))

    async def _fetch(self, film: GrowingFilm) -> None:
        index = film.index
        try:
            async with asyncio.timeout(_WRITES_S):
                ended = await self._until_ended(index.egress_id)
                await self._store(film, ended)
        except (TimeoutError, StoreFailed, OSError) as error:
            index.error = f"The film of the room could not be fetched ({error or type(error).__name__})."
        except ProblemError as error:
            index.error = error.detail
        index.state = RecordingState.STOPPED
        if index.error:
            _log.error("a room has no film", extra={"session_id": index.session_id, "error": index.error[:200]})
        await self._closed(film)

    async def _until_ended(self, egress_id: str) -> EgressEnd:
        while (ended := await self._egress.ended(egress_id)) is None:  # noqa: ASYNC110 - LiveKit has to be asked
            await asyncio.sleep(LOOK_S)
        return ended

    async def _store(self, film: GrowingFilm, ended: EgressEnd) -> None:
        if ended.error:
            raise ProblemError(ErrorCode.RECORDING_UNAVAILABLE, f"Egress made no film of the room: {ended.error}.")
        path, at = self._egress.path(film.index.session_id), 0
        while data := await asyncio.to_thread(_read, path, at):
            at += len(data)
            film.extend(data)
            await film.flush()
        film.index.room_s, film.index.parts = ended.seconds, 1
        await film.flush()
        await asyncio.to_thread(path.unlink, True)


def _read(path: Path, at: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(_CHUNK)
