"""Films of whole rooms: LiveKit Egress, where a deployment has it, joins as a viewer and writes an MP4 file, which goes into the
store of films when it has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from livekit import api

from musetalk_agent.protocol.http import RecordingState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.livekit_rooms import LiveKitClient, LiveKitFailed
from orchestrator.recording.film_store import FilmOf, StoreFailed
from orchestrator.recording.growing_film import GrowingFilm

CALL_S = 10.0
"""A server whose Egress service is away answers after 24 s only that there was no response."""
LAYOUT = "speaker"
"""One of Egress's own templates: who speaks is large, the others beside."""


@dataclass(frozen=True, slots=True)
class EgressEnd:
    """What became of one: seconds of film, and what went wrong, if anything did."""

    seconds: float
    error: str = ""


class RoomEgress:
    """Begins and ends egresses. `open()` before use, `aclose()` after it.

    Args:
        livekit: a client of its own.
        folder: where Egress writes, as the Egress service and this process see it; None: there is no Egress here.
    """

    def __init__(self, livekit: LiveKitClient, folder: Path | None) -> None:
        self._livekit, self._folder = livekit, folder

    @property
    def there(self) -> bool:
        """Whether the deployment has one."""
        return self._folder is not None

    async def open(self) -> None:
        """Prepares the client; does not connect yet."""
        await self._livekit.open()

    async def aclose(self) -> None:
        """Closes the client's connections."""
        await self._livekit.aclose()

    def path(self, session_id: str) -> Path:
        """The file of a session's room. Raises ProblemError `recording_unavailable` where there is no Egress."""
        if self._folder is None:
            raise ProblemError(
                ErrorCode.RECORDING_UNAVAILABLE,
                "This deployment records no rooms: it needs LiveKit Egress, and EGRESS_DIR, the folder it writes to. "
                "The avatar alone is recorded without (leave `of` out).",
                field="of",
                value="room",
            )
        return self._folder / f"{session_id}.mp4"

    async def begin(self, session_id: str, room: str) -> str:
        """Begins to record a room; returns the egress's id. Raises ProblemError `recording_unavailable`."""
        output = api.EncodedFileOutput(
            file_type=api.EncodedFileType.MP4, filepath=str(self.path(session_id)), disable_manifest=True
        )
        request = api.RoomCompositeEgressRequest(
            room_name=room, layout=LAYOUT, preset=api.EncodingOptionsPreset.H264_720P_30, file_outputs=[output]
        )
        try:
            info = await self._livekit.call(
                lambda livekit: livekit.egress.start_room_composite_egress(request), CALL_S, idempotent=False
            )
        except LiveKitFailed as error:
            raise ProblemError(
                ErrorCode.RECORDING_UNAVAILABLE,
                f"LiveKit cannot record the room: {_reason(error)}. The avatar alone is recorded without Egress (leave `of` out).",
                retry_after_s=5,
                field="of",
                value="room",
            ) from error
        return info.egress_id

    async def stop(self, egress_id: str) -> None:
        """Has it end and write its file; nothing happens where it has ended. Raises ProblemError `recording_unavailable`."""
        request = api.StopEgressRequest(egress_id=egress_id)
        try:
            await self._livekit.call(lambda livekit: livekit.egress.stop_egress(request), CALL_S)
        except LiveKitFailed as error:
            if error.code not in ("failed_precondition", "not_found"):
                raise self._silent(error) from error

    async def ended(self, egress_id: str) -> EgressEnd | None:
        """What became of it; None while it is at work. Raises ProblemError `recording_unavailable`."""
        request = api.ListEgressRequest(egress_id=egress_id)
        try:
            listed = await self._livekit.call(lambda livekit: livekit.egress.list_egress(request), CALL_S)
        except LiveKitFailed as error:
            if error.code == "not_found":
                return EgressEnd(0.0, "LiveKit does not know it any more")
            raise self._silent(error) from error
        if not listed.items:
            return EgressEnd(0.0, "LiveKit does not know it any more")
        info = listed.items[0]
        if info.status in _AT_WORK:
            return None
        seconds = max((file.duration for file in info.file_results), default=0) / 1e9
        whole = info.status in (api.EgressStatus.EGRESS_COMPLETE, api.EgressStatus.EGRESS_LIMIT_REACHED)
        return EgressEnd(seconds, "" if whole else info.error or api.EgressStatus.Name(info.status))

    @staticmethod
    def _silent(error: LiveKitFailed) -> ProblemError:
        return ProblemError(
            ErrorCode.RECORDING_UNAVAILABLE,
            f"LiveKit does not say what became of the room's recording: {_reason(error)}. Try again.",
            retry_after_s=5,
        )


_AT_WORK = (
    api.EgressStatus.EGRESS_STARTING,
    api.EgressStatus.EGRESS_ACTIVE,
    api.EgressStatus.EGRESS_ENDING,
)


def _reason(error: LiveKitFailed) -> str:
    """What is to be done about it, where the server's words say so."""
    if "redis required" in error.detail:
        return "livekit-server has no Redis, through which it reaches Egress"
    if "no response from servers" in error.detail or error.code == "TimeoutError":
        return "no Egress service answers livekit-server"
    return str(error)


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
