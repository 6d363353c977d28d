"""One film while it is recorded: turns the entries of agents' logs into bytes, buffers them for a moment, and appends them to the
store.

It also knows how far the speech of the session is in it: the entries say where in which segment the sound of a part is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import struct
import time
from collections import deque
from collections.abc import Sequence

from pydantic import ValidationError

from musetalk_agent.protocol.http import FILM_CLOCK, FILM_SPOKEN, FilmEntry, FilmPart
from orchestrator.audio.heard_speech import Position
from orchestrator.recording.boxes import BadFilm
from orchestrator.recording.film_joiner import FilmJoiner
from orchestrator.recording.film_store import FilmIndex, FilmStore

WAITING_BYTES = 32 << 20
"""What a store that fails leaves waiting; then nothing is fetched any more, and agents keep or drop what they have."""
_MARKS = 256
"""Of the speech in the part under way: each says where a segment begins or a pause ends, and those of the last fragments count."""
_log = logging.getLogger(__name__)


class GrowingFilm:
    """Takes entries, stores what they are, and reads it back. One event loop.

    Args:
        index: of a film that is new, or goes on.
        store: where it is kept.

    Attributes:
        log_id, entry: the agent's log, and the number of its entry that was taken last.
    """

    def __init__(self, index: FilmIndex, store: FilmStore) -> None:
        self.index, self._store = index, store
        self.log_id, self.entry = index.log_id, index.entry
        self._joiner = FilmJoiner(index.join)
        self._waiting = bytearray()
        self._flushed_at = time.monotonic()
        self._flushing = asyncio.Lock()
        self._skipping = self._fresh = False
        self._header = b""
        self._spoken: Position = (0, 0.0)  # of what came before the part under way
        self._clocks: deque[tuple[float, float]] = deque(maxlen=_MARKS)
        self._marks: deque[tuple[float, int, float]] = deque(maxlen=_MARKS)

    @property
    def spoken(self) -> Position:
        """Up to where the speech of the session is in it."""
        film_s = self._joiner.part_audio_s
        zero = next((zero for since, zero in reversed(self._clocks) if since <= film_s), -math.inf)
        at = zero + film_s
        mark = next((mark for mark in reversed(self._marks) if mark[0] <= at), None)
        return max(self._spoken, (mark[1], mark[2] + at - mark[0])) if mark is not None else self._spoken

    def say(self, frames: Sequence[bytes], until: Position) -> None:
        """Speech that no part has, as frames of AAC, up to that position. Before the first picture it is left out."""
        if frames and self._joiner.state.begun and not self._header:
            self._waiting += self._joiner.say(frames)
        self._spoken = max(self._spoken, until)

    @property
    def size(self) -> int:
        """Bytes that can be read now."""
        return self.index.size + len(self._waiting)

    @property
    def seconds(self) -> float:
        """How long it is now."""
        return self._joiner.state.seconds or self.index.room_s

    @property
    def stored_entry(self) -> int:
        """Number of the log's entry up to which everything is stored."""
        return self.index.entry if self.index.log_id == self.log_id else 0

    @property
    def full(self) -> bool:
        """More waits for the store than may."""
        return len(self._waiting) > WAITING_BYTES

    @property
    def due(self) -> bool:
        """What waits is to be stored."""
        age = time.monotonic() - self._flushed_at
        return bool(self._waiting) and (len(self._waiting) >= self._store.flush_bytes or age >= self._store.flush_s)

    def extend(self, data: bytes) -> None:
        """More bytes of a film that others made."""
        self._waiting += data

    def new_log(self, log_id: str) -> None:
        """The entries that come now are numbered by another log."""
        self._spoken = self.spoken
        self._clocks.clear()
        self._marks.clear()
        self.log_id, self.entry = log_id, 0
        self._joiner.lose()

    def take(self, number: int, kind: FilmEntry, payload: bytes) -> None:
        """The next entry; one that was taken before is passed over. What cannot be joined is left out, counted and logged."""
        if number <= self.entry:
            return
        index, missing = self.index, number - self.entry - 1
        if missing:
            index.lost += missing
            self._joiner.lose()
        self.entry = number
        try:
            if kind is FilmEntry.HEADER:
                self._spoken = self.spoken
                self._clocks.clear()
                self._skipping, self._fresh = True, True
                self._header += self._joiner.begin(payload)
                self._skipping = False
            elif kind is FilmEntry.FRAGMENT and not self._skipping:
                joined = self._joiner.add(payload)
                self._waiting += self._header + joined  # a header alone is no film that plays
                index.parts += self._fresh
                self._header, self._fresh = b"", False
            elif kind is FilmEntry.FRAGMENT:
                index.lost += 1
            elif kind is FilmEntry.CLOCK:
                self._clocks.append(FILM_CLOCK.unpack(payload))
            elif kind is FilmEntry.SPOKEN:
                self._marks.append(FILM_SPOKEN.unpack(payload))
            elif kind is FilmEntry.END:
                part = FilmPart.model_validate_json(payload)
                index.frames += part.frames
                index.dropped_frames += part.dropped
                index.lost_audio += part.lost_audio
        except (BadFilm, ValidationError, struct.error) as error:
            index.lost += kind is FilmEntry.FRAGMENT
            self._joiner.lose()
            _log.warning(
                "a piece of a film is left out", extra={"session_id": index.session_id, "error": str(error)[:200]}
            )

    async def flush(self) -> None:
        """Stores what waits, and the index. Raises StoreFailed: then it waits on. Cancelling loses nothing."""
        async with self._flushing:
            self._flushed_at = time.monotonic()
            index, data = self.index, bytes(self._waiting)
            index.updated_at = time.time()
            saved = index.model_copy(deep=True)
            saved.size, saved.log_id, saved.entry = index.size + len(data), self.log_id, self.entry
            if data:
                await self._store.append(index.session_id, index.size, data)
            await self._store.save(saved)
            index.size, index.log_id, index.entry = saved.size, saved.log_id, saved.entry
            del self._waiting[: len(data)]

    async def read(self, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end`, or fewer at its end. Raises StoreFailed."""
        stored = self.index.size
        waiting = bytes(self._waiting[max(0, begin - stored) : max(0, end - stored)])
        if begin >= stored:
            return waiting
        return await self._store.read(self.index.session_id, begin, min(end, stored)) + waiting
