"""Writes parts of a film as their frames come, each put in place whole."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.renders import RenderPlan
from musetalk_agent.renders.film_parts import PartWriter

LOOK_FRAMES = 25
"""Frames from one look at whether the render was cancelled, or must wait, to the next."""


class RenderStopped(Exception):
    """The render has ended meanwhile: it was cancelled."""


def runs(parts: list[int]) -> list[range]:
    """Parts in ascending order as runs of those that follow each other."""
    found: list[range] = []
    for part in parts:
        if found and found[-1].stop == part:
            found[-1] = range(found[-1].start, part + 1)
        else:
            found.append(range(part, part + 1))
    return found


def stretch_of(plan: RenderPlan, run: range) -> range:
    """The frames of a run of parts."""
    return range(plan.part(run.start).start, plan.part(run.stop - 1).stop)


async def make_parts(
    folder: Path,
    plan: RenderPlan,
    run: range,
    frames: AsyncGenerator[VideoFrame, None],
    writer: Callable[[Path, int], PartWriter],
    suffix: str,
    may_go_on: Callable[[], Awaitable[None]],
) -> None:
    """Writes the parts of a run, and closes `frames`, which gives theirs in order.

    Args:
        folder: where finished parts lie.
        writer: opens a part whose first frame has a number.
        may_go_on: called once a second of film; raises RenderStopped.

    Raises what `frames` raises; RenderStopped; OSError. Cancelling leaves what is finished.
    """
    try:
        for part in run:
            made = folder / f".{part:06d}.{secrets.token_hex(4)}"
            try:
                with writer(made, plan.part(part).start) as target:
                    await _write(target, plan.part(part), frames, may_go_on)
                made.replace(folder / f"{part:06d}.{suffix}")
            except FileNotFoundError:  # it has ended, and its parts are deleted
                raise RenderStopped from None
            finally:
                made.unlink(missing_ok=True)
    finally:
        await frames.aclose()


async def _write(
    target: PartWriter,
    numbers: range,
    frames: AsyncGenerator[VideoFrame, None],
    may_go_on: Callable[[], Awaitable[None]],
) -> None:
    """Writes a part's frames, each while the next one is made. When it ends, however it does, none is on its way."""
    writing: asyncio.Future[None] | None = None
    try:
        for number in numbers:
            if number % LOOK_FRAMES == 0:
                await may_go_on()
            frame = await anext(frames)
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(asyncio.to_thread(target.write, frame))
        if writing is not None:
            await writing
    finally:
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)
