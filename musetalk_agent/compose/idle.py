"""The idle clip: which frame is next, and frames made one position ahead in worker threads: the event loop reads no disk."""

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
    """Maps a position, which only grows, to an idle frame: 0, 1 … n-1, n-2 … 1, 0, 1 … A clip of one frame stands still.

    The loop never restarts: a segment takes the positions after the last one shown, and the idle clip continues after it.
    """

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"an idle clip needs at least one frame, got {frames}")
        self._frames = frames
        self._period = max(1, 2 * (frames - 1))

    def idle_index(self, position: int) -> int:
        """Idle frame shown at `position` (≥ 0)."""
        phase = position % self._period
        return phase if phase < self._frames else self._period - phase


class LoopCursor:
    """Assigns positions of the loop to idle frames, which are shown now, and to spoken frames, which are made ahead of time.

    Args:
        lead: idle frames that will be shown between the request of a segment's first frame and its display.
    """

    def __init__(self, lead: int = 1) -> None:
        self._lead = lead
        self._shown = -1
        self._reserved: deque[int] = deque()

    def reserve(self, lead: int | None = None) -> int:
        """The position of the next spoken frame. `lead` replaces the usual number of idle frames before it."""
        position = (
            self._reserved[-1] + 1 if self._reserved else self._shown + 1 + (self._lead if lead is None else lead)
        )
        self._reserved.append(position)
        return position

    def show(self, position: int) -> None:
        """Records that a spoken frame was shown or dropped: the loop is at its position."""
        while self._reserved and self._reserved[0] <= position:
            self._reserved.popleft()
        self._shown = max(self._shown, position)

    def next_idle(self) -> int:
        """The position that `idle` would return now."""
        position = self._shown + 1
        if self._reserved:
            position = max(self._shown, min(position, self._reserved[0] - 1))
        return max(0, position)

    def idle(self) -> int:
        """The position of an idle frame shown now: the next one, but never past a reserved one."""
        self._shown = self.next_idle()
        return self._shown

    def release(self) -> None:
        """Cancels every reservation (a clear)."""
        self._reserved.clear()


def load_idle(compositor: Compositor, idle_index: int) -> VideoFrame:
    """Composes an idle frame and loads it into memory. Blocks on the disk: call it in a worker thread.

    A frame without a patch is a view of the bundle's file. One byte of each page is read here, so that the page faults of a file
    that is not in the page cache happen in this thread and not where the frame is published.
    """
    frame = compositor.idle(idle_index)
    frame.i420[:: mmap.PAGESIZE].sum()
    return frame


class IdleFrames:
    """Returns idle frames in the order of the loop. At most one is being made at a time.

    Args:
        first: the idle frame that is already shown.
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
        """Starts making the next idle frame, unless it is ready or another one is being made. Call it on the event loop."""
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
        """The next idle frame; the loop moves on. None, counted in `late`, when it is not made yet: the loop then stays.

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
