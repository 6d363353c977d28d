"""The film of one session at this agent: recording begins and ends, and begins again where its encoder is lost."""

from __future__ import annotations

import asyncio
import logging
import math

from musetalk_agent.agent_metrics import FILM_RESTARTS
from musetalk_agent.clock import Clock
from musetalk_agent.errors import RecordingFailed
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import FILM_SPOKEN, FilmEntry
from musetalk_agent.publishers.film.fragment_log import FragmentLog
from musetalk_agent.publishers.film.recorder import PartOptions, PartRecorder

log = logging.getLogger(__name__)

_AGAIN_S = 1.0
_MOST_RESTARTS = 5
"""In a row: an encoder that ends within ten seconds each time is given up."""
_STEADY_S = 10.0
_GAP_S = 0.01
"""A block of speech that begins by more before or after the end of the one before it does not simply follow on it."""


class SessionFilm:
    """What is heard and seen, from whatever publishes it, into one log; a `MediaTap` (`publishers/base.py`).

    Parts follow one another. Nothing that happens here reaches the session: what cannot be recorded is logged and counted.
    """

    def __init__(self, clock: Clock) -> None:
        self.entries = FragmentLog()
        self._clock = clock
        self._part: PartRecorder | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._spoken = (0.0, 0, 0.0)

    @property
    def recording(self) -> bool:
        """Whether media are taken, or will be when the encoder has started again."""
        return self._keeper is not None and not self._keeper.done()

    async def record(self, options: PartOptions, *, again: bool = False) -> None:
        """Begins a part, unless one is under way; returns when the encoder takes media. Raises `RecordingFailed`.

        With `again` an encoder that does not start is started again, as one that ends is. Cancelling leaves nothing begun.
        """
        async with self._changing:
            if self.recording or self.entries.closed:
                return
            try:
                part = await self._begin(options)
            except RecordingFailed:
                if again:
                    self._keep_on(options, None)
                raise
            self._keep_on(options, part)

    async def stop(self) -> None:
        """Ends the part under way; returns when all of it is in the log, within 5 s. Idempotent."""
        async with self._changing:
            await self._stop()

    async def aclose(self) -> None:
        """Ends the film. Idempotent; bounded as `stop` is."""
        async with self._changing:
            try:
                await self._stop()
            finally:
                self.entries.add(FilmEntry.CLOSED)

    async def _stop(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        part, self._part = self._part, None
        if part is not None:
            await part.aclose()

    def _keep_on(self, options: PartOptions, part: PartRecorder | None) -> None:
        self._keeper = asyncio.create_task(self._keep(options, part), name="film-keeper")

    async def _begin(self, options: PartOptions) -> PartRecorder:
        part = PartRecorder(options, self.entries, self._clock)
        await part.start()
        self._part = part
        self.entries.add(FilmEntry.SPOKEN, FILM_SPOKEN.pack(*self._spoken))
        return part

    async def _keep(self, options: PartOptions, part: PartRecorder | None) -> None:
        """Starts the encoder again when it ends, or when there is none yet, with a new part, until it is cancelled."""
        restarts, begun = 0, self._clock.now()
        while True:
            if part is not None:
                await part.ended.wait()
            restarts = 0 if self._clock.now() - begun > _STEADY_S else restarts + 1
            if restarts > _MOST_RESTARTS:
                log.error("the film is given up: its encoder ends again and again")
                return
            log.warning("the encoder of a film ended, and is started again", extra={"restarts": restarts})
            FILM_RESTARTS.inc()
            await self._clock.sleep_until(self._clock.now() + _AGAIN_S)
            try:
                part = await self._begin(options)
            except RecordingFailed:
                log.warning("the encoder of a film did not start")
            begun = self._clock.now()

    def note_spoken(self, at: float, segment: int, second: float) -> None:
        """From `at` on (monotonic seconds) that segment is heard, from that second of it on. What just follows is not logged."""
        since, last, before = self._spoken
        if not math.isfinite(at):  # nothing can be played at the moment: it comes again
            return
        if segment == last and abs((at - second) - (since - before)) <= _GAP_S:
            return
        self._spoken = at, segment, second
        if self.recording:
            self.entries.add(FilmEntry.SPOKEN, FILM_SPOKEN.pack(*self._spoken))

    # --- the tap -----------------------------------------------------------------------------------------------------

    def offer_audio(self, at: float, block: Pcm) -> None:
        """int16 mono samples at `ROOM_RATE` that are heard from `at` on (monotonic seconds)."""
        if self._part is not None:
            self._part.offer_audio(at, block)

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        """A frame that is seen at `at`."""
        if self._part is not None:
            self._part.offer_video(at, frame)

    def clear_audio(self, since: float) -> None:
        """What would be heard at `since` or later is not heard."""
        if self._part is not None:
            self._part.clear_audio(since)
