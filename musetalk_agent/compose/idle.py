"""The idle clip: which frame is next, and frames made one tick ahead in worker threads so that the event loop reads no disk."""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from concurrent.futures import Executor
from contextlib import ExitStack

from musetalk_agent.clock import Clock
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.media_types import VideoFrame


class PingPongLoop:
    """Maps an ever-growing tick to an idle frame: 0, 1 … n-1, n-2 … 1, 0, 1 … A clip of one frame stands still.

    The cycle never restarts: a segment takes the ticks that follow the last one shown, and the idle clip goes on after it.
    """

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"an idle clip needs at least one frame, got {frames}")
        self._frames = frames
        self._period = max(1, 2 * (frames - 1))

    def idle_index(self, tick: int) -> int:
        """Idle frame shown at `tick` (≥ 0)."""
        phase = tick % self._period
        return phase if phase < self._frames else self._period - phase


class LoopCursor:
    """Hands out the ticks of the cycle to idle pictures, shown now, and to spoken ones, made a little ahead of time.

    Args:
        lead: ticks that will pass as idle pictures between the order of a segment's first picture and its showing.
    """

    def __init__(self, lead: int = 1) -> None:
        self._lead = lead
        self._shown = -1
        self._reserved: deque[int] = deque()

    def reserve(self, lead: int | None = None) -> int:
        """The tick of the next spoken picture. `lead`: idle pictures that pass before it, where more is known than the usual."""
        tick = self._reserved[-1] + 1 if self._reserved else self._shown + 1 + (self._lead if lead is None else lead)
        self._reserved.append(tick)
        return tick

    def show(self, tick: int) -> None:
        """A spoken picture was shown or dropped: the cycle is at its tick."""
        while self._reserved and self._reserved[0] <= tick:
            self._reserved.popleft()
        self._shown = max(self._shown, tick)

    def next_idle(self) -> int:
        """The tick that `idle` would return now."""
        tick = self._shown + 1
        if self._reserved:
            tick = max(self._shown, min(tick, self._reserved[0] - 1))
        return max(0, tick)

    def idle(self) -> int:
        """The tick of an idle picture shown now: the next one, but never past what spoken pictures have reserved."""
        self._shown = self.next_idle()
        return self._shown

    def release(self) -> None:
        """Every reservation is void (a clear)."""
        self._reserved.clear()


def load_idle(compositor: Compositor, idle_index: int) -> VideoFrame:
    """The idle frame of `idle_index`, in memory. Blocks on the disk and composes: for worker threads.

    A frame without a patch is a view of the bundle's file. One byte of each page is read here, so that the page faults of a file
    that is not in the page cache happen in this thread and not where the frame is published.
    """
    frame = compositor.idle(idle_index)
    frame.i420[:: mmap.PAGESIZE].sum()
    return frame


class IdleFrames:
    """Gives out idle frames in the order of the cycle. At most one is being made at a time.

    Args:
        first: the idle frame that is shown already.
        executor: threads that make the frames.
    """

    def __init__(
        self,
        compositor: Compositor,
        cycle: PingPongLoop,
        cursor: LoopCursor,
        clock: Clock,
        executor: Executor,
        first: VideoFrame,
    ) -> None:
        self._compositor, self._cycle, self._cursor = compositor, cycle, cursor
        self._clock, self._executor = clock, executor
        self._shown = first
        self._next: tuple[int, asyncio.Future[VideoFrame]] | None = None
        self.late = 0

    def prepare(self) -> None:
        """Begins to make the next idle frame, unless it is there or another one is being made. Call it on the event loop."""
        idle_index = self._cycle.idle_index(self._cursor.next_idle())
        if idle_index == self._shown.idle_index:
            return
        if self._next is not None and (self._next[0] == idle_index or not self._next[1].done()):
            return
        working = ExitStack()
        working.enter_context(self._clock.working())
        making = asyncio.get_running_loop().run_in_executor(self._executor, load_idle, self._compositor, idle_index)
        making.add_done_callback(lambda _: working.close())
        self._next = idle_index, making

    def take(self) -> VideoFrame | None:
        """The next idle frame; the cycle moves on. None, counted in `late`, when it is not made yet: the cycle then stays.

        Raises what making the frame raised.
        """
        idle_index = self._cycle.idle_index(self._cursor.next_idle())
        if idle_index != self._shown.idle_index:
            if self._next is None or self._next[0] != idle_index or not self._next[1].done():
                self.late += 1
                self.prepare()
                return None
            self._shown = self._next[1].result()
        self._cursor.idle()
        self.prepare()
        return self._shown
