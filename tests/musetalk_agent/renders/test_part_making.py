"""Parts of a film: which are made together, what a part needs to be whole, and what is left where its making ends early."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.renders import RenderPlan
from musetalk_agent.renders.part_making import LOOK_FRAMES, RenderStopped, make_parts, runs, stretch_of

PLAN = RenderPlan(avatar_id="a", engine="pattern", width=2, height=2, fps=1, frames=25, begun_at=0.0)
"""A frame a second: parts are short."""


def frame(number: int) -> VideoFrame:
    return VideoFrame(np.full(6, number, np.uint8), 2, 2, 0)


@dataclass
class Source:
    """Frames of a run, in order; `fails_at` breaks instead of giving that one."""

    first: int
    fails_at: int | None = None
    closed: bool = False
    given: int = 0

    async def frames(self) -> AsyncGenerator[VideoFrame, None]:
        try:
            number = self.first
            while True:
                if number == self.fails_at:
                    raise RuntimeError("the engine broke")
                self.given += 1
                yield frame(number)
                number += 1
        finally:
            self.closed = True


@dataclass
class Writers:
    """Opens parts that are text files with the numbers of their frames; `full_at` is a frame at which the disk is full."""

    full_at: int | None = None
    opened: list[int] = field(default_factory=list)
    left: int = 0

    def open(self, path: Path, first: int) -> Part:
        self.opened.append(first)
        return Part(self, path)


class Part:
    def __init__(self, writers: Writers, path: Path) -> None:
        self._writers, self._path = writers, path

    def __enter__(self) -> Part:
        self._path.touch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writers.left += 1

    def write(self, shown: VideoFrame) -> None:
        number = int(shown.i420[0])
        if number == self._writers.full_at:
            raise OSError(28, "No space left on device")
        with self._path.open("a") as file:
            file.write(f"{number} ")


async def go_on() -> None:
    """Nothing holds the render up."""


def made(folder: Path) -> dict[str, list[int]]:
    """The finished parts by name, with the frames they hold."""
    return {path.name: [int(word) for word in path.read_text().split()] for path in sorted(folder.iterdir())}


@given(st.sets(st.integers(0, 30)))
def test_runs_are_the_parts_in_order_and_no_two_follow_each_other(parts: set[int]) -> None:
    found = runs(sorted(parts))
    assert [part for run in found for part in run] == sorted(parts)
    assert all(run for run in found)
    assert all(after.start > before.stop for before, after in itertools.pairwise(found))


@given(st.integers(1, 400), st.data())
def test_the_stretch_of_a_run_is_that_of_its_parts_together(frames: int, data: st.DataObject) -> None:
    plan = PLAN.model_copy(update={"frames": frames})
    first = data.draw(st.integers(0, plan.parts - 1))
    run = range(first, data.draw(st.integers(first + 1, plan.parts)))
    assert list(stretch_of(plan, run)) == [number for part in run for number in plan.part(part)]


async def test_every_part_has_its_frames_in_order_and_nothing_else_is_left(tmp_path: Path) -> None:
    source, writers = Source(0), Writers()
    await make_parts(tmp_path, PLAN, range(PLAN.parts), source.frames(), writers.open, "txt", go_on)
    found = made(tmp_path)
    assert list(found) == [f"{part:06d}.txt" for part in range(PLAN.parts)]
    assert [number for numbers in found.values() for number in numbers] == list(range(PLAN.frames))
    assert writers.opened == [PLAN.part(part).start for part in range(PLAN.parts)]
    assert writers.left == PLAN.parts and source.closed and source.given == PLAN.frames, "and no frame too many is made"


async def test_a_run_in_the_middle_begins_with_its_first_frame(tmp_path: Path) -> None:
    run = range(1, 2)
    await make_parts(tmp_path, PLAN, run, Source(stretch_of(PLAN, run).start).frames(), Writers().open, "txt", go_on)
    assert made(tmp_path) == {"000001.txt": list(PLAN.part(1))}


async def test_it_is_asked_once_a_second_of_film_and_ends_where_the_render_has(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"fps": LOOK_FRAMES, "frames": 10 * LOOK_FRAMES})
    asked, source = 0, Source(0)

    async def ended() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise RenderStopped

    with pytest.raises(RenderStopped):
        await make_parts(tmp_path, plan, range(plan.parts), source.frames(), Writers().open, "txt", ended)
    assert source.given == 2 * LOOK_FRAMES and source.closed
    assert all(len(numbers) == plan.part_frames for numbers in made(tmp_path).values()), "no half part"


@pytest.mark.parametrize("fault", ["frames", "disk"])
async def test_what_fails_in_a_part_leaves_those_before_it_alone(tmp_path: Path, fault: str) -> None:
    at = PLAN.part(1).start + 1
    source = Source(0, fails_at=at if fault == "frames" else None)
    writers = Writers(full_at=at if fault == "disk" else None)
    with pytest.raises(RuntimeError if fault == "frames" else OSError, match=r"broke|No space"):
        await make_parts(tmp_path, PLAN, range(PLAN.parts), source.frames(), writers.open, "txt", go_on)
    assert list(made(tmp_path)) == ["000000.txt"]
    assert source.closed and writers.left == len(writers.opened) == 2


async def test_a_folder_that_is_gone_is_a_render_that_has_ended(tmp_path: Path) -> None:
    """Its maker finds out when a part is to be put in place, or the next one to be begun."""
    folder, source = tmp_path / "parts", Source(0)
    folder.mkdir()

    async def deleted() -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    with pytest.raises(RenderStopped):
        await make_parts(folder, PLAN, range(1), source.frames(), Writers().open, "txt", deleted)
    assert source.closed


async def test_cancelling_leaves_what_is_finished(tmp_path: Path) -> None:
    reached, source, writers = asyncio.Event(), Source(0), Writers()

    async def frames() -> AsyncGenerator[VideoFrame, None]:
        inner = source.frames()
        try:
            async for each in inner:
                if source.given > PLAN.part(1).start + 1:
                    reached.set()
                    await asyncio.Event().wait()
                yield each
        finally:
            await inner.aclose()

    making = asyncio.create_task(make_parts(tmp_path, PLAN, range(PLAN.parts), frames(), writers.open, "txt", go_on))
    await reached.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert made(tmp_path) == {"000000.txt": list(PLAN.part(0))}
    assert source.closed and writers.left == 2


def test_a_plan_that_became_longer_has_the_parts_of_its_own_length() -> None:
    """As a film does whose last clip goes on after the sound."""
    assert PLAN.parts == 7
    longer = PLAN.model_copy(update={"frames": 41})
    assert (PLAN.parts, longer.parts, longer.spans) == (7, 11, 2)
    assert longer.part(10) == range(40, 41)
