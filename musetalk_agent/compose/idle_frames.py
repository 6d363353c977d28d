"""Idle frames made one beat ahead in worker threads, so that the event loop neither reads the disk nor composes."""

from __future__ import annotations

import asyncio
import mmap
from concurrent.futures import Executor
from contextlib import ExitStack

from musetalk_agent.clock import Clock
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.idle import IdleCursor, IdleCycle
from musetalk_agent.media import VideoFrame


def load_idle(compositor: Compositor, pose: int) -> VideoFrame:
    """The idle frame of `pose`, in memory. Blocks on the disk and composes: for worker threads.

    A frame without a patch is a view of the bundle's file. One byte of each page is read here, so that the page faults of a file
    that is not in the page cache happen in this thread and not where the frame is published.
    """
    frame = compositor.idle(pose)
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
        cycle: IdleCycle,
        cursor: IdleCursor,
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
        pose = self._cycle.pose(self._cursor.next_idle())
        if pose == self._shown.pose:
            return
        if self._next is not None and (self._next[0] == pose or not self._next[1].done()):
            return
        working = ExitStack()
        working.enter_context(self._clock.working())
        making = asyncio.get_running_loop().run_in_executor(self._executor, load_idle, self._compositor, pose)
        making.add_done_callback(lambda _: working.close())
        self._next = pose, making

    def take(self) -> VideoFrame | None:
        """The next idle frame; the cycle moves on. None, counted in `late`, when it is not made yet: the cycle then stays.

        Raises what making the frame raised.
        """
        pose = self._cycle.pose(self._cursor.next_idle())
        if pose != self._shown.pose:
            if self._next is None or self._next[0] != pose or not self._next[1].done():
                self.late += 1
                self.prepare()
                return None
            self._shown = self._next[1].result()
        self._cursor.idle()
        self.prepare()
        return self._shown
