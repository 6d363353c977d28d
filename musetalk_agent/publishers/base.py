"""The interface of publishers (sinks for paced audio and frames), the publisher without a room, and taps that record what one
plays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from musetalk_agent.clock import Clock
from musetalk_agent.media.playout import PlayoutClock
from musetalk_agent.media.segment import ROOM_RATE, Caption
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import PublisherMode, TrackInfo, Transport
from musetalk_agent.protocol.messages import PublisherChanged

if TYPE_CHECKING:
    from livekit import rtc  # not every session needs the SDK


@dataclass(slots=True)
class PublisherState:
    """What a publisher knows of its own connection; it keeps the one object up to date. `acknowledged_at` is `time.time()`.

    `watched` is False while no viewer and no film gets the frames: those that are pushed need not be drawn.
    """

    connected: bool = False
    reconnecting: bool = False
    subscribed: bool = False
    viewers: int = 0
    watched: bool = True
    tracks: list[TrackInfo] = field(default_factory=list)
    published_frames: int = 0
    acknowledged_frames: int = 0
    acknowledged_at: float | None = None
    error: str | None = None


Lost = Callable[[str], None]
"""Called once, with the reason, when the connection has ended for good without being asked to."""


class Publisher(Protocol):
    """A sink. `playout` is the master clock; frames are pushed at the moment they are due.

    `open` is called once, before anything else. All methods run on the event loop.
    """

    name: str
    state: PublisherState
    playout: PlayoutClock

    async def open(self, first: VideoFrame, lost: Lost) -> None:
        """Connects and publishes both tracks, showing `first` from the start. Raises `PublishFailed`.

        Cancelling is safe: the connection attempt is finished or torn down in the background.
        """
        ...

    async def push_audio(self, block: Pcm) -> None:
        """Hands over int16 mono samples at `media.segment.ROOM_RATE`, a multiple of 10 ms; waits while the sink's queue is full.

        Only one call at a time. Must not be cancelled while it waits. A block that still waits when audio is cleared or
        rewound is discarded; after a rewind it is pushed again.
        """
        ...

    def push_video(self, frame: VideoFrame, due: float | None = None) -> None:
        """Shows a frame now. Never waits. `due`: seconds of the clock at which it was to leave; None for now."""
        ...

    def clear_audio(self) -> int:
        """Empties the sink's queue; returns how many samples will not be heard."""
        ...

    async def set_state(self, state: str) -> None:
        """Shows the room what the avatar does (`idle`, `speaking`, `degraded`); best effort."""
        ...

    async def aclose(self) -> None:
        """Leaves the room. Idempotent, callable in any state, bounded in time."""
        ...


class MediaTap(Protocol):
    """Gets what is heard and seen beside the publisher, and when. Nothing here waits or raises."""

    def offer_audio(self, at: float, block: Pcm) -> None:
        """int16 mono samples at `ROOM_RATE`; the first is heard at `at` (monotonic seconds). `block` does not change."""
        ...

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        """A frame that is seen at `at`."""
        ...

    def clear_audio(self, since: float) -> None:
        """What would be heard at `since` or later is not heard."""
        ...


@runtime_checkable
class TappedPublisher(Publisher, Protocol):
    """A publisher whose media can be recorded. `tap` may be set at any time."""

    tap: MediaTap | None


@runtime_checkable
class CaptionPublisher(Publisher, Protocol):
    """A publisher whose viewers can read."""

    def push_caption(self, caption: Caption) -> None:
        """Shows text now. Never waits; best effort."""
        ...


@runtime_checkable
class MovingPublisher(Publisher, Protocol):
    """A publisher that has several transports and switches between them."""

    transport: Transport

    async def open(
        self,
        first: VideoFrame,
        lost: Lost,
        rewind: Callable[[int], None] | None = None,
        changed: Callable[[PublisherChanged], None] | None = None,
        joined: Callable[[rtc.Room], None] | None = None,
    ) -> None:
        """As `Publisher.open`. `changed` is called with the transport that media take now, `joined` with each room that is joined,
        before anything is published in it.

        `rewind(position)`: what was enqueued after sample `position` of `playout` was not heard, and is wanted again. It winds
        `playout` back itself; None winds it back and asks for nothing.
        """
        ...

    def set_mode(self, mode: PublisherMode) -> None:
        """Allows other ways from now on. Raises `PublisherUnavailable` for one that the session does not have."""
        ...


_QUEUE_S = 0.06


class NullPublisher:
    """Plays into nothing. `watch` is called with the time and every frame, `listen` with the time and every block."""

    name = "null"

    def __init__(
        self,
        clock: Clock,
        watch: Callable[[float, VideoFrame], None] | None = None,
        listen: Callable[[float, Pcm], None] | None = None,
    ) -> None:
        self._clock = clock
        self._watch = watch
        self._listen = listen
        self.state = PublisherState()
        self.playout = PlayoutClock(clock, ROOM_RATE, grain_s=0.0)
        self.tap: MediaTap | None = None

    async def open(self, first: VideoFrame, lost: Lost) -> None:
        """Always succeeds."""
        self.state.connected = True
        self.push_video(first)

    async def push_audio(self, block: Pcm) -> None:
        """Waits while more than 60 ms are queued, as the LiveKit publisher does."""
        self.playout.enqueue(len(block))
        at = self.playout.time_of(self.playout.enqueued - len(block))
        if self._listen:
            self._listen(at, block)
        if self.tap is not None:
            self.tap.offer_audio(at, block)
        excess = self.playout.queued_s() - _QUEUE_S
        if excess > 0:
            await self._clock.sleep_until(self._clock.now() + excess)

    def push_video(self, frame: VideoFrame, due: float | None = None) -> None:
        """Counts the frame."""
        self.state.published_frames += 1
        self.state.acknowledged_frames += 1
        if self._watch:
            self._watch(self._clock.now(), frame)
        if self.tap is not None:
            self.tap.offer_video(self._clock.now(), frame)

    def clear_audio(self) -> int:
        """Empties the queue."""
        if self.tap is not None:
            self.tap.clear_audio(self._clock.now())
        return self.playout.clear()

    async def set_state(self, state: str) -> None:
        """Does nothing: there is no listener."""

    async def aclose(self) -> None:
        """Nothing to leave."""
        self.state.connected = False


class MediaTaps:
    """A `MediaTap` that passes media to each of its taps. Not thread-safe: use it on one event loop."""

    def __init__(self) -> None:
        self._taps: tuple[MediaTap, ...] = ()

    @property
    def empty(self) -> bool:
        """There is none."""
        return not self._taps

    def add(self, tap: MediaTap) -> None:
        """Passes media to `tap` from now on. Idempotent."""
        if tap not in self._taps:
            self._taps = (*self._taps, tap)

    def remove(self, tap: MediaTap) -> None:
        """Stops passing media to `tap`. Idempotent."""
        self._taps = tuple(one for one in self._taps if one is not tap)

    def offer_audio(self, at: float, block: Pcm) -> None:
        """As `MediaTap.offer_audio`."""
        for tap in self._taps:
            tap.offer_audio(at, block)

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        """As `MediaTap.offer_video`."""
        for tap in self._taps:
            tap.offer_video(at, frame)

    def clear_audio(self, since: float) -> None:
        """As `MediaTap.clear_audio`."""
        for tap in self._taps:
            tap.clear_audio(since)
