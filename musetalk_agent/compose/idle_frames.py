"""Idle frames, made one position ahead in worker threads: the event loop reads no disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from typing import Generic

import numpy as np

from musetalk_agent.clock import Clock
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.head_motion import AS_IT_IS, Pose
from musetalk_agent.compose.idle import LoopCursor
from musetalk_agent.compose.layers import laid
from musetalk_agent.compose.timeline import F, ShownFrame, Timeline
from musetalk_agent.media_types import VideoFrame


def load_idle(compositor: Compositor, idle_index: int, pose: Pose = AS_IT_IS) -> VideoFrame:
    """Composes an idle frame, in its layers, and loads it into memory. Blocks on the disk: call it in a worker thread.

    A frame without a patch is a view of the bundle's file, which is copied here: a copy lets other threads run while a file that
    is not in the page cache is read. A look at single bytes keeps the interpreter's lock meanwhile, and the event loop waits.
    """
    frame = compositor.idle(idle_index, pose)
    if frame.alpha is None and not frame.i420.flags.writeable:
        frame = replace(frame, i420=np.array(frame.i420))
    return frame


def load_first(compositor: Compositor) -> VideoFrame:
    """The first frame that is shown, as it is published. Blocks as `load_idle` does."""
    return laid(load_idle(compositor, 0))


def load_look(look: ShownFrame[F]) -> VideoFrame:
    """The same for what is shown at a position, which may be between two clips."""
    frame = load_idle(look.face.compositor, look.idle_index, look.pose)
    leaving = look.leaving
    if leaving is None:
        return laid(frame)
    return laid(leaving.mixed(load_idle(leaving.face.compositor, leaving.idle_index, leaving.pose), frame, look))


class IdleFrames(Generic[F]):
    """Returns idle frames in the order of the loop. At most one is being made at a time.

    Args:
        timeline: which frames these are.
        first: the idle frame that is already shown.
        executor: threads that make the frames.
        watched: whether a viewer gets them. While none does, the loop goes on and makes no frame.
    """

    def __init__(
        self,
        timeline: Timeline[F],
        cursor: LoopCursor,
        clock: Clock,
        executor: Executor,
        first: VideoFrame,
        watched: Callable[[], bool] = lambda: True,
    ) -> None:
        self._timeline, self._cursor, self._watched = timeline, cursor, watched
        self._clock, self._executor = clock, executor
        self._shown = timeline.at(max(0, cursor.shown)), first
        self._next: tuple[ShownFrame[F], asyncio.Future[VideoFrame]] | None = None
        self.late = 0

    def prepare(self) -> None:
        """Starts making the next idle frame, unless it is ready or another one is being made. Call it on the event loop."""
        if not self._watched():
            return
        look = self._timeline.at(self._cursor.next_idle())
        if look == self._shown[0]:
            return
        if self._next is not None and (self._next[0] == look or not self._next[1].done()):
            return
        working = ExitStack()
        working.enter_context(self._clock.working())
        making = asyncio.get_running_loop().run_in_executor(self._executor, load_look, look)
        making.add_done_callback(lambda _: working.close())
        self._next = look, making

    def take(self) -> VideoFrame | None:
        """Returns the next idle frame, and moves the loop on. Without a viewer it returns the last frame that was made.

        None, counted in `late`, when it is not made yet: the loop then stays.

        Raises what making the frame raised.
        """
        if self._watched():
            look = self._timeline.at(self._cursor.next_idle())
            if look != self._shown[0]:
                if self._next is None or self._next[0] != look or not self._next[1].done():
                    self.late += 1
                    self.prepare()
                    return None
                self._shown = look, self._next[1].result()
        self._cursor.idle()
        self._timeline.forget(self._cursor.shown)
        self.prepare()
        return self._shown[1]
