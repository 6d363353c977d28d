"""One part of a film: what is heard and seen goes to an encoder process, and its fragments into a log."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import logging
import math
import os
import select
import sys
import threading
from dataclasses import dataclass

import numpy as np

from musetalk_agent.agent_metrics import FILM_DROPPED, FILM_QUEUE, FILMS
from musetalk_agent.clock import Clock
from musetalk_agent.errors import RecordingFailed
from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import FilmEntry, FilmPart
from musetalk_agent.publishers.film.fragment_log import FragmentLog
from musetalk_agent.publishers.film.worker import PIECE
from musetalk_agent.publishers.stream.encoder import MediaQueue, QueuedAudio, QueuedFrame, StreamShape
from musetalk_agent.publishers.stream.records import audio_record, end_record, frame_head

log = logging.getLogger(__name__)

AUDIO_S = 30.0
"""Audio waits so long for an encoder that stands still; frames wait for half a second (`MediaQueue`)."""
_READY_S = 10.0
"""For the process to start on a machine that is busy; half a second on one that is not."""
_END_S = 5.0
"""For what waits to be encoded when a part ends: a tenth of a second on a machine that is not busy."""
_TICK_S = 0.02
_PIPE = 1 << 20
_MOST_PIECE = 64 << 20
_QUIET = 58
"""Peak of a block that counts as silence: -55 dBFS."""
_TAIL_S = 0.5
"""So much of the idle time after speech stays in a film without idle time."""


@dataclass(frozen=True, slots=True)
class PartOptions:
    """How a part is encoded: the film's size in pixels (even) and most frames a second; whether idle time is left out."""

    width: int
    height: int
    fps: int
    skip_idle: bool = False


def part_bitrate(width: int, height: int) -> int:
    """Most bits per second for frames of this size: 1.5 Mbit/s at 512×512, 1 to 6 Mbit/s. Most pictures need a fraction of it."""
    return int(min(6_000_000, max(1_000_000, 1_500_000 * width * height / (512 * 512))))


class PartRecorder:
    """Takes media on the event loop and never waits; a thread feeds the process, a task reads what it makes.

    `ended` is set when nothing more comes of it: after `aclose`, or because the process ended. `state` counts.
    """

    def __init__(self, options: PartOptions, entries: FragmentLog, clock: Clock) -> None:
        self._options, self._entries, self._clock = options, entries, clock
        self.state = FilmPart()
        self.ended = asyncio.Event()
        self._ready = asyncio.Event()
        self._queue = MediaQueue(AUDIO_S)
        self._queued_s = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._feeder: threading.Thread | None = None
        self._kept_until = -math.inf
        self._aborted = False

    async def start(self) -> None:
        """Returns when the encoder is ready. Raises `RecordingFailed`; nothing of it is left then, or when this is cancelled."""
        taken, given = os.pipe()
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(given, fcntl.F_SETPIPE_SZ, _PIPE)
        os.set_blocking(given, False)
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "musetalk_agent.publishers.film.worker"]
        with contextlib.ExitStack() as unused:
            unused.callback(os.close, given)  # the feeder closes it, once there is a process to feed
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command, stdin=taken, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, limit=1 << 20
                )
            finally:
                os.close(taken)
            unused.pop_all()
        FILMS.inc()
        self._feeder = threading.Thread(target=self._feed, args=(given,), name="film-feeder", daemon=True)
        self._feeder.start()
        self._reader = asyncio.create_task(self._read(self._process), name="film-reader")
        waits = {asyncio.create_task(event.wait()) for event in (self._ready, self.ended)}
        ready = False
        try:
            await asyncio.wait(waits, timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
            ready = self._ready.is_set()
        finally:
            for wait in waits:
                wait.cancel()
            if not ready:
                self._abort()
                await asyncio.shield(self.ended.wait())
        if not ready:
            raise RecordingFailed("The encoder of the film did not start; the agent's log has the details.")

    def offer_audio(self, at: float, block: Pcm) -> None:
        """int16 mono samples at `ROOM_RATE`, the first heard at `at` (monotonic seconds). `block` must not change."""
        if self._options.skip_idle:
            if np.abs(block.astype(np.int32)).max(initial=0) > _QUIET:
                self._kept_until = at + len(block) / ROOM_RATE + _TAIL_S
            elif at > self._kept_until:
                return
        self._queue.offer_audio(QueuedAudio(at, block))

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        """A frame that is seen at `at`, after the audio up to there."""
        if self._options.skip_idle and at > self._kept_until:
            return
        self._queue.offer_video(QueuedFrame(at, frame))
        self._count(self._queue.seconds())

    def clear_audio(self, since: float) -> None:
        """Drops the audio that would be heard at `since` (monotonic seconds) or later and is not encoded yet."""
        self._queue.clear_audio(since)
        self._kept_until = min(self._kept_until, since + _TAIL_S)

    async def aclose(self) -> None:
        """Encodes what waits, within 5 s, and ends. Idempotent. Cancelling ends it at once."""
        self._queue.stop()
        if self._process is None:
            return
        try:
            async with asyncio.timeout(_END_S):
                await self.ended.wait()
        except TimeoutError:
            log.warning("the encoder of a film would not end")
        finally:
            self._abort()
        await self.ended.wait()

    def _abort(self) -> None:
        self._aborted = True
        self._queue.stop()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Puts what the process makes into the log, until it ends; then reports how the part ended."""
        assert process.stdout is not None
        try:
            while True:
                kind, size = PIECE.unpack(await process.stdout.readexactly(PIECE.size))
                if size > _MOST_PIECE:
                    raise ValueError(f"a piece of {size} bytes")
                if kind == FilmEntry.END:
                    break
                self._entries.add(FilmEntry(kind), await process.stdout.readexactly(size))
                self._ready.set()
        except asyncio.IncompleteReadError:
            pass  # it has ended
        except ValueError:
            log.exception("the encoder of a film writes nonsense")
        finally:
            self._abort()
            await asyncio.shield(process.wait())
            self._count(0.0)
            if self._ready.is_set():
                self._entries.add(FilmEntry.END, self.state.model_dump_json().encode())
            FILMS.dec()
            self.ended.set()

    def _count(self, queued_s: float) -> None:
        queue, state = self._queue, self.state
        FILM_QUEUE.inc(queued_s - self._queued_s)
        FILM_DROPPED.labels("picture").inc(queue.dropped_frames - state.dropped)
        FILM_DROPPED.labels("sound").inc(queue.dropped_audio - state.lost_audio)
        self._queued_s, state.dropped, state.lost_audio = queued_s, queue.dropped_frames, queue.dropped_audio

    # --- the feeder's thread -----------------------------------------------------------------------------------------

    def _feed(self, pipe: int) -> None:
        """Writes what is due, so that what is cleared before it is heard is in no film."""
        options = self._options
        shape = StreamShape(options.width, options.height, options.fps, part_bitrate(options.width, options.height))
        about = {"shape": dataclasses.asdict(shape), "skip_idle": options.skip_idle}
        try:
            self._write(pipe, json.dumps(about).encode() + b"\n")
            while not self._aborted:
                now, stopped = self._clock.now(), self._queue.stopped
                item = self._queue.take(now, math.inf if stopped else now)
                if isinstance(item, QueuedAudio):
                    self._write(pipe, audio_record(item))
                elif isinstance(item, QueuedFrame):
                    self._write(pipe, frame_head(item))
                    self._write(pipe, item.frame.i420.data)
                    self.state.frames += 1
                elif stopped:
                    self._write(pipe, end_record())
                    return
                else:
                    self._queue.rest(_TICK_S)
        except BrokenPipeError:
            log.warning("the encoder of a film has ended")
        finally:
            os.close(pipe)

    def _write(self, pipe: int, data: bytes | memoryview) -> None:
        left = memoryview(data).cast("B")
        while left and not self._aborted:
            try:
                left = left[os.write(pipe, left) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(pipe, select.POLLOUT)
                poll.poll(1000 * _TICK_S)
