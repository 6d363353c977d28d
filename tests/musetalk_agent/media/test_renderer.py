"""Production and the batcher: what a barge-in makes worthless never reaches the device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.pattern import PatternEngine
from musetalk_agent.media.renderer import UNFIT
from musetalk_agent.media_types import Patch
from tests.musetalk_agent.stand import stand, tone
from tests.waiting import NEVER_S, until


class SlowPattern(PatternEngine):
    """One frame at a time, each held at a gate."""

    batch_sizes: Sequence[int] = (1,)  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.frames = 0

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        self.frames += len(batch)
        assert self.gate.wait(NEVER_S)
        return super().infer(batch)


async def test_frames_of_a_cleared_generation_never_reach_the_device(executor: ThreadPoolExecutor) -> None:
    engine = SlowPattern()
    async with stand(executor, engine=engine) as made:
        batcher = made.pipeline.renderer._batcher
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(1))
        await until(lambda: engine.frames and batcher.statistics().waiting >= 2)
        under_way = engine.frames
        made.pipeline.clear()
        engine.gate.set()
        await made.pass_time(1)
        assert under_way == 1
        await until(lambda: batcher.statistics().dropped >= 2)  # by the batcher's thread
        assert engine.frames - under_way <= 1  # the frame that the compositor was waiting for


class Counting(PatternEngine):
    """Counts the frames that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = 0

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        self.frames += len(batch)
        return super().infer(batch)


async def test_nothing_is_drawn_while_nobody_watches_and_the_voice_and_its_events_go_on(
    executor: ThreadPoolExecutor,
) -> None:
    engine = Counting()
    async with stand(executor, engine=engine, frames=9) as made:
        made.pipeline.renderer._publisher.state.watched = False
        await made.pass_time(0.2)
        idle_indices = made.idle_indices[-3:]
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(1))
        made.pipeline.end()
        await made.pass_time(2)
        report = made.pipeline.player.report()
        assert (engine.frames, report["unwatched"], report["spoken"], report["failed"]) == (0, 25, 0, 0)
        assert report["dropped"] == report["held"] == report["idle_late"] == 0
        assert sum(len(block) for _, block in made.sound) == 48_000
        assert made.kinds()[-1] == "playback.finished"
        assert len(made.pictures) == 61 and not made.whites()  # a picture every 40 ms all the same
        assert len(set(idle_indices)) == 1 and set(made.idle_indices[-40:]) == set(idle_indices)
        made.pipeline.renderer._publisher.state.watched = True
        made.pipeline.begin(2, 16_000)
        made.pipeline.push(tone(1))
        made.pipeline.end()
        await made.pass_time(2)
        report = made.pipeline.player.report()
        assert (report["unwatched"], report["spoken"]) == (25, 25)
        assert len(made.whites()) == 1 and len(set(made.idle_indices[-30:])) > 5


async def test_a_viewer_who_comes_in_the_middle_of_a_word_sees_its_lips(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.renderer._publisher.state.watched = False
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(2))
        await made.pass_time(0.6)
        assert not made.whites()
        made.pipeline.renderer._publisher.state.watched = True
        await made.pass_time(0.6)  # eight frames were ready
        assert made.whites() and made.pictures[-1][1]
        made.pipeline.clear()
        await made.pass_time(0.6)
        assert not made.pictures[-1][1]


class Unfit(PatternEngine):
    """Makes nothing that can be shown."""

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        return [None] * len(batch)


async def test_frames_that_the_engine_found_unfit_are_reported_in_the_funnel(executor: ThreadPoolExecutor) -> None:
    async with stand(executor, engine=Unfit()) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(0.4))
        made.pipeline.end()
        await made.pass_time(1)
    stages = {stage.stage: stage for stage in made.pipeline.stats.report()}
    assert stages["patches"].last_error == UNFIT
    assert stages["composed"].count == 10


class Closing(PatternEngine):
    """Takes its time to close the mouth, and makes all of it at once."""

    fade_out_frames = 12


@pytest.mark.parametrize("pause_s", [0.0, 0.6])
async def test_a_mouth_that_closes_gives_way_to_speech(executor: ThreadPoolExecutor, pause_s: float) -> None:
    """Which waits already, or comes when half of the closing frames, all of them made, were shown."""
    async with stand(executor, engine=Closing()) as made:
        for number in (1, 2):
            made.pipeline.begin(number, 16_000)
            made.pipeline.push(tone(0.4))
            made.pipeline.end()
            await made.pass_time(pause_s)
        await made.pass_time(2)
        report = made.pipeline.player.report()
    assert made.kinds() == ["playback.started", "playback.finished"] * 2
    closing = int(report["spoken"] or 0) - 20
    assert (closing == 12) if not pause_s else (12 < closing < 24), "the first time only some are shown, or none"
    assert (report["dropped"], report["held"]) == (0, 0)
