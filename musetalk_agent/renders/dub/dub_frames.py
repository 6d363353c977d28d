"""The frames of a dub, any stretch of them: the footage's own, with the mouths of those that speak."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.media_types import Feature, Patch, VideoFrame
from musetalk_agent.renders.dub.footage import Footage, FootageFrame
from musetalk_agent.renders.dub.footage_scan import FootageScan
from musetalk_agent.renders.dub.takes import Take, put_mouth
from musetalk_agent.renders.talking_frames import LEAD_FRAMES, Mouth, Talker, mouths


@dataclass(frozen=True)
class Decided:
    """What the new voice asks of mouths: `talking_frames.decide`, from frame `first` of an even rate on."""

    first: int
    features: list[Feature | None]


@dataclass(frozen=True)
class Actor:
    """A take at its engine."""

    take: Take
    bundle: Bundle
    talker: Talker


class FrameReader:
    """Footage that is read in threads, one after the other. `close` waits for a frame that is being decoded."""

    def __init__(self, footage: Footage, look: FootageScan, start: int) -> None:
        self._frames: Iterator[FootageFrame] = footage.frames(start, look.stamps)
        self._lock = threading.Lock()
        self._closed = False

    def next(self) -> FootageFrame | None:
        """The next frame; None at the end, and once it is closed. Blocks. Raises ProblemError."""
        with self._lock:
            return None if self._closed else next(self._frames, None)

    def close(self) -> None:
        """Safe to call twice."""
        with self._lock:
            self._closed = True
            close = getattr(self._frames, "close", None)
            if close is not None:
                close()


def grid_of(look: FootageScan, frames: range) -> NDArray[np.int64]:
    """Which frame of an even rate each frame of the footage has the sound of: int64 `[n]`."""
    return np.asarray(np.rint(look.times[frames.start : frames.stop] * look.rate), np.int64)


def heard_stretch(look: FootageScan, frames: range) -> range:
    """The frames of an even rate whose sound a stretch of footage needs."""
    first = max(0, frames.start - LEAD_FRAMES)
    grid = grid_of(look, range(first, frames.stop))
    return range(int(grid[0]), int(grid[-1]) + 1)


async def dub_frames(
    footage: Footage, look: FootageScan, actors: list[Actor], frames: range, decided: Decided
) -> AsyncGenerator[VideoFrame, None]:
    """Frames of the footage in order, spoken where a mouth was changed. Closing the iterator drops what was begun.

    `decided` is of `heard_stretch` of these frames, or of more.

    Raises FramesFailed; ProblemError where the footage cannot be read (again).
    """
    reader = FrameReader(footage, look, frames.start)
    width, height = look.size
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, reader.close)
        playing = [_Playing(actor, look, frames, decided) for actor in actors if _meets(actor.take.frames, frames)]
        for each in playing:
            each.patches = await stack.enter_async_context(aclosing(each.patches))
        for number in frames:
            frame = await asyncio.to_thread(reader.next)
            if frame is None:
                return
            spoken = False
            for each in playing:
                if number in each.frames:
                    patch = await each.patch(number)
                    if patch is not None:
                        index = number - each.actor.take.frames.start
                        take, bundle = each.actor.take, each.actor.bundle
                        spoken |= await asyncio.to_thread(
                            put_mouth, frame.planes, frame.colours, take, bundle, index, patch
                        )
            yield VideoFrame(frame.planes.reshape(-1), width, height, number, spoken)


class _Playing:
    """An actor's patches in a stretch."""

    def __init__(self, actor: Actor, look: FootageScan, stretch: range, decided: Decided) -> None:
        take, session = actor.take, actor.talker.session
        self.actor = actor
        self.frames = range(max(stretch.start, take.frames.start), min(stretch.stop, take.frames.stop))
        led = range(max(0, self.frames.start - LEAD_FRAMES), self.frames.stop)
        shown: list[Mouth] = list(mouths(decided.features, session, actor.talker.batcher.engine.fade_out_frames))
        grid = grid_of(look, led)
        wanted = (
            (session, max(0, number - take.frames.start), shown[int(at) - decided.first], number)
            for number, at in zip(led, grid, strict=True)
            if number >= take.frames.start
        )
        self._next = max(led.start, take.frames.start)
        self.patches = actor.talker.patches(wanted)

    async def patch(self, number: int) -> Patch | None:
        """The patch of a frame, each asked for once, in order; the one of a mouth at rest where it says nothing."""
        patch: Patch | None = None
        while self._next <= number:
            patch = await anext(self.patches)
            self._next += 1
        index = number - self.actor.take.frames.start
        return patch if patch is not None else self.actor.talker.session.idle(index)


def _meets(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)
