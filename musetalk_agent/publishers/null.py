"""A publisher to nowhere, at the pace of its clock: for sessions without a room, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Callable

from musetalk_agent.clock import Clock
from musetalk_agent.media.playout import PlayoutClock
from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.publishers.base import Lost, PublisherState

_QUEUE_S = 0.06


class NullPublisher:
    """Plays into nothing. `watch` is called with the time and every picture, `listen` with the time and every block."""

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

    async def open(self, first: VideoFrame, lost: Lost) -> None:
        """Always succeeds."""
        self.state.connected = True
        self.push_video(first)

    async def push_audio(self, block: Pcm) -> None:
        """Waits while more than 60 ms are queued, as the LiveKit publisher does."""
        self.playout.hand(len(block))
        if self._listen:
            self._listen(self.playout.time_of(self.playout.handed - len(block)), block)
        excess = self.playout.queued_s() - _QUEUE_S
        if excess > 0:
            await self._clock.sleep_until(self._clock.now() + excess)

    def push_video(self, frame: VideoFrame) -> None:
        """Counts the picture."""
        self.state.published_frames += 1
        self.state.acknowledged_frames += 1
        if self._watch:
            self._watch(self._clock.now(), frame)

    def clear_audio(self) -> int:
        """Empties the queue."""
        return self.playout.clear()

    async def set_state(self, state: str) -> None:
        """Nobody to tell."""

    async def aclose(self) -> None:
        """Nothing to leave."""
        self.state.connected = False
