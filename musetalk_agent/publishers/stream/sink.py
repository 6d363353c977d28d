"""A sink that encodes and pushes a session's media to a stream server, in a thread of its own, and comes back by itself.

The event loop offers audio and video with the time at which each is heard and seen, and never waits. The thread connects,
encodes, pushes, and after a failure does so again with a new stream: first the audio that the server has not acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from av.error import FFmpegError

from musetalk_agent import agent_metrics
from musetalk_agent.clock import Clock
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.publishers.rtmp.address import RtmpAddress
from musetalk_agent.publishers.rtmp.protocol import RtmpError
from musetalk_agent.publishers.stream.encoder import AUDIO_S, MediaQueue, QueuedAudio, QueuedFrame, StreamShape

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 3.0
_STEADY_S = 5.0  # a push that lasted so long was a good one: the next attempt follows quickly
_TICK_S = 0.1
_DRAIN_S = 0.7  # what waits at the end is pushed for so long
_ABORT_S = 1.5  # then the event loop shuts the socket down, so that the thread's blocking call fails
_CLOSE_S = 2.7
_NOT_YET = 1 << 62  # more bytes than are ever sent
_ENCODER_HOLDS_S = 0.1  # audio that encoder and muxer keep before it becomes bytes


@dataclass(frozen=True)
class StreamOptions:
    """What to push where.

    `url` is secret for RTMP, and `address` what `check_rtmp` made of it; for WHIP it is LiveKit's ws(s) URL, and `token` joins.
    Sizes are even; `bitrate` is that of the frames, in bit/s. RTMP pads frames smaller than `least_frame_bytes`.
    """

    url: str = field(repr=False)
    fps: int
    width: int
    height: int
    bitrate: int
    address: RtmpAddress | None = None
    token: str | None = field(default=None, repr=False)
    least_frame_bytes: int = 0


@dataclass(slots=True)
class StreamState:
    """What a sink knows of its push; it keeps the one object up to date.

    `connected_at` is monotonic, as is `delivered_at`: audio heard before it is known to have reached the server. `dropped` counts
    frames, `lost_audio` blocks of audio that were given up; `queue_s` is what waits. `error` is why it is not connected.
    """

    connected: bool = False
    error: str | None = None
    frames_sent: int = 0
    dropped: int = 0
    lost_audio: int = 0
    queue_s: float = 0.0
    reconnects: int = 0
    connected_at: float | None = None
    delivered_at: float | None = None


class StreamConnection(Protocol):
    """One stream, from connecting to its end. `abort` may be called from any thread, all else belongs to the sink's.

    What fails raises OSError, RtmpError or FFmpegError, in bounded time.
    """

    @property
    def sent(self) -> int:
        """Bytes given to the transport."""
        ...

    def open(self, shape: StreamShape) -> None:
        """Connects, and begins the stream."""
        ...

    def play(self, sound: QueuedAudio) -> None:
        """Adds audio."""
        ...

    def show(self, picture: QueuedFrame) -> None:
        """Adds a frame, after the audio before it."""
        ...

    def set_bitrate(self, bitrate: int) -> None:
        """Takes effect with the next frame; no more than the shape's."""
        ...

    def poll(self) -> None:
        """Raises when the connection is over."""
        ...

    def pending(self) -> int:
        """Bytes of `sent` that the other side has not acknowledged."""
        ...

    def finish(self) -> None:
        """Ends the stream in order."""
        ...

    def abort(self) -> None:
        """Makes the call under way fail soon."""
        ...

    def close(self) -> None:
        """Frees everything. Idempotent; never raises."""
        ...


class StreamSink(ABC):
    """Base of `RtmpSink` and `WhipSink`, which say how to connect. All public methods are for the event loop's thread."""

    name = "stream"

    def __init__(self, options: StreamOptions, clock: Clock, on_change: Callable[[], None]) -> None:
        self.options = options
        self.state = StreamState()
        self._clock = clock
        self._on_change = on_change
        self._queue = MediaQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended = asyncio.Event()
        self._current: StreamConnection | None = None
        self._aborted = False
        self._bitrate, self._divisor, self._offered = options.bitrate, 1, 0
        self._sent: deque[tuple[int, QueuedAudio]] = deque()

    def start(self) -> None:
        """Begins to connect, and goes on until `aclose`; returns at once."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name=f"{self.name}-sink", daemon=True)
            self._thread.start()

    def offer_audio(self, at: float, block: Pcm) -> None:
        """Adds int16 mono samples at `ROOM_RATE`, the first heard at `at`; gaps are silence. `block` must not change."""
        if not self._queue.stopped and len(block):
            self._queue.offer_audio(QueuedAudio(at, block))

    def clear_audio(self, since: float = -math.inf) -> None:
        """Drops the audio heard at `since` (monotonic seconds) or later that was not pushed yet, and never pushes it again."""
        self._queue.clear_audio(since)
        self._count()

    @property
    def pushed_until(self) -> float:
        """When the audio that was pushed ends (monotonic seconds): a clear leaves it. -inf where there is none."""
        return self._queue.taken_until

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        """Adds a frame seen at `at`, after the audio up to there. When more than 500 ms wait, frames are dropped."""
        self._offered += 1
        if not self._queue.stopped and self._offered % self._divisor == 0:
            self._queue.offer_video(QueuedFrame(at, frame))
            self._count()

    def set_quality(self, *, bitrate: int, fps_divisor: int) -> None:
        """Bits per second of the frames from now on (at most those of the options); only every `fps_divisor`-th is pushed."""
        self._bitrate, self._divisor = bitrate, max(1, fps_divisor)

    async def aclose(self) -> None:
        """Pushes what waits, for up to 0.7 s, and ends; within 3 s whatever the server does. Idempotent.

        Cancelling leaves the thread to end by itself.
        """
        self._queue.stop()
        if self._thread is None or self._ended.is_set():
            return
        assert self._loop is not None
        aborting = self._loop.call_later(_ABORT_S if self.state.connected else 0, self._abort)
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._ended.wait()
        except TimeoutError:
            log.warning("a push would not end", extra={"sink": self.name})
        finally:
            aborting.cancel()
            self._count(ended=True)

    @abstractmethod
    def _connect(self, attempt: int) -> StreamConnection:
        """A new push, not yet open."""

    def _describe(self, error: Exception) -> str:
        """What an error says, without secrets."""
        return str(error) if isinstance(error, RtmpError) else getattr(error, "strerror", None) or type(error).__name__

    def _abort(self) -> None:
        self._aborted = True
        push = self._current
        if push is not None:
            push.abort()

    def _run(self) -> None:
        wait_s, attempt = _FIRST_WAIT_S, 0
        try:
            while not self._queue.stopped:
                begun = self._clock.now()
                try:
                    self._push(attempt)
                except (OSError, FFmpegError, RtmpError) as error:
                    self._change(connected=False, error=None if self._aborted else self._describe(error))
                except Exception as error:  # the thread's boundary: whatever a push ends by, another one is tried
                    log.exception("a push failed in an unknown way", extra={"sink": self.name})
                    self._change(connected=False, error=self._describe(error))
                attempt += 1
                wait_s = _FIRST_WAIT_S if self._clock.now() - begun > _STEADY_S else wait_s
                self._queue.rest(wait_s)
                wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
        finally:
            self._change(connected=False, error=self.state.error)
            self._on_loop(self._ended.set)

    def _push(self, attempt: int) -> None:
        """One stream, from connecting to its end. Raises what ended it; returns when the sink is closed."""
        options = self.options
        self._current = push = self._connect(attempt)
        try:
            if self._aborted:
                return
            with ExitStack() as on_error:
                on_error.callback(self._take_back, push)
                push.open(StreamShape(options.width, options.height, options.fps, options.bitrate))
                self.state.connected_at = self._clock.now()
                if self.state.frames_sent:
                    self.state.reconnects += 1
                    agent_metrics.STREAM_RECONNECTS.labels(self.name).inc()
                self._change(connected=True, error=None)
                self._pump(push)
                push.finish()
                on_error.pop_all()
        finally:
            push.close()
            self._current = None

    def _pump(self, push: StreamConnection) -> None:
        """Encodes and pushes what is offered, until the sink is closed and nothing waits any more."""
        last: float | None = None
        bitrate = self.options.bitrate
        while True:
            if self._queue.stopped:
                last = last or self._clock.now() + _DRAIN_S
                if self._clock.now() > last:
                    return
            self._forget_cleared()
            item = self._queue.take(self._clock.now())
            if item is None:
                if last:
                    return
                self._queue.wait(_TICK_S)
            elif isinstance(item, QueuedAudio):
                self._sent.append((_NOT_YET, item))
                push.play(item)
                self._sent[-1] = (push.sent, item)
            else:
                if self._bitrate != bitrate:
                    bitrate = self._bitrate
                    push.set_bitrate(bitrate)
                push.show(item)
                self.state.frames_sent += 1
                agent_metrics.STREAM_FRAMES.labels(self.name).inc()
            push.poll()
            self._confirm(push)

    def _confirm(self, push: StreamConnection) -> None:
        """Forgets the audio that has reached the server."""
        arrived = push.sent - push.pending()
        newest = next((sound.at for offset, sound in reversed(self._sent) if offset <= arrived), None)
        while newest is not None and self._sent[0][1].at < newest - _ENCODER_HOLDS_S:
            self.state.delivered_at = self._sent[0][1].at
            self._sent.popleft()
        while self._sent and self._sent[-1][1].at - self._sent[0][1].at > AUDIO_S:
            self._sent.popleft()

    def _forget_cleared(self) -> None:
        """Cleared audio is not pushed again. Called before each `take`, when later audio is not in `_sent` yet."""
        cut = self._queue.take_cut()
        while cut is not None and self._sent and self._sent[-1][1].at >= cut:
            self._sent.pop()

    def _take_back(self, push: StreamConnection) -> None:
        """Audio that has not reached the server waits again, for the next push."""
        self._confirm(push)
        self._forget_cleared()
        while self._sent:
            self._queue.requeue(self._sent.pop()[1])

    def _count(self, *, ended: bool = False) -> None:
        state, queue = self.state, self._queue
        waits = 0.0 if ended else queue.seconds()
        agent_metrics.STREAM_QUEUE.labels(self.name).inc(waits - state.queue_s)
        agent_metrics.STREAM_DROPPED.labels(self.name, "picture").inc(queue.dropped_frames - state.dropped)
        agent_metrics.STREAM_DROPPED.labels(self.name, "sound").inc(queue.dropped_audio - state.lost_audio)
        state.queue_s, state.dropped, state.lost_audio = waits, queue.dropped_frames, queue.dropped_audio

    def _change(self, *, connected: bool, error: str | None) -> None:
        if (self.state.connected, self.state.error) == (connected, error):
            return
        self.state.connected, self.state.error = connected, error
        log.info("push %s", "begun" if connected else "ended", extra={"sink": self.name, "error": error})
        self._on_loop(self._on_change)

    def _on_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: nothing waits any more
            log.debug("a push ended after its event loop", extra={"sink": self.name})
