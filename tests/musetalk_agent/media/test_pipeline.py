"""The whole pipeline on virtual time: in step, complete, and silent when asked to be."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.pattern import PatternEngine, PatternFeatures, PatternStream
from musetalk_agent.media.scheduler import REPEAT_FRAMES
from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import Feature, Patch, Pcm
from musetalk_agent.protocol.messages import Cleared, PlaybackFinished
from tests.musetalk_agent.stand import Stand, bursts, stand, tone


def _skews(made: Stand) -> list[float]:
    return [white - sound for white, sound in zip(made.whites(), made.onsets(), strict=True)]


@pytest.mark.parametrize("fps", [25, 30, 15, 50, 60])
async def test_live_bursts_are_seen_when_they_are_heard(executor: ThreadPoolExecutor, fps: int) -> None:
    async with stand(executor, fps) as made:
        made.pipeline.begin(1, 16_000)
        await made.live(bursts(10))
        made.pipeline.end()
        await made.pass_time(1)
    assert len(made.whites()) == len(made.onsets()) == 10
    # on frame boundaries at 25 and 50 fps; else a burst's first frame may begin up to half a frame from its sound
    slack = 0.002 if fps in (25, 50) else 1 / fps
    assert max(abs(s) for s in _skews(made)) <= slack
    assert made.kinds() == ["playback.started", "playback.finished"]
    assert made.spoken[0][1] is True and made.spoken[-1][1] is False


async def test_speech_sent_at_once_is_heard_whole_and_begins_at_once(executor: ThreadPoolExecutor) -> None:
    speech = bursts(5)
    async with stand(executor) as made:
        asked = made.clock.now()
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(speech)
        made.pipeline.end()
        await made.pass_time(7)
    heard = np.concatenate([block for _, block in made.sound])
    assert len(heard) == len(speech) * 3
    assert made.sound[0][0] - asked < 0.02
    assert max(abs(s) for s in _skews(made)) < 0.002
    finished = made.events[-1][1]
    assert isinstance(finished, PlaybackFinished)
    assert finished.position_s == pytest.approx(len(speech) / 16_000, abs=1e-3) and not finished.interrupted
    assert made.pipeline.player.report()["dropped"] == 0


async def test_a_pause_inside_a_segment_holds_both_and_they_go_on_together(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        await made.live(bursts(2))
        await made.pass_time(0.7)
        await made.live(bursts(2))
        made.pipeline.end()
        await made.pass_time(1)
    assert len(made.onsets()) == 4
    assert max(abs(s) for s in _skews(made)) < 0.002
    report = made.pipeline.player.report()
    assert (report["underruns"], report["margin_ms"]) == (0, 40)
    assert (report["dropped"], report["held"]) == (0, 0)  # no frame counts as late while it is unknown when it is due
    assert made.kinds() == ["playback.started", "playback.finished"]


async def test_a_late_sender_gets_more_head_start_and_a_steady_one_gets_it_back(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        playback = made.pipeline.player
        for number in range(1, 7):
            made.pipeline.begin(number, 16_000)
            await made.live(tone(1))
            if number <= 2:
                await made.pass_time(0.12)
            await made.live(tone(1))
            await made.pass_time(0.5)  # what a sender without `audio.end` leaves open
            made.pipeline.end()
            await made.pass_time(0.5)
            assert playback.report()["underruns"] == min(number, 2)
            assert playback.report()["margin_ms"] == [60, 80, 70, 60, 50, 40][number - 1]


async def test_clear_is_silent_and_dark_at_once(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(4))
        await made.pass_time(1.0)
        at = made.clock.now()
        cleared = made.pipeline.clear()
        handed = len(made.sound)
        await made.pass_time(1)
    assert len(made.sound) == handed
    assert not any(white for t, white in made.pictures if t > at + 0.041)
    assert cleared.dropped_s == pytest.approx(3.0, abs=0.1)
    kinds = made.kinds()
    assert kinds == ["playback.started", "playback.finished", "cleared"]
    finished = made.events[1][1]
    assert isinstance(finished, PlaybackFinished) and finished.interrupted
    assert finished.position_s + cleared.dropped_s == pytest.approx(4.0, abs=0.002)


async def test_after_a_clear_only_a_new_segment_is_heard(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(2))
        await made.pass_time(0.5)
        made.pipeline.clear()
        made.pipeline.push(tone(1))  # of a sender that has not noticed
        await made.pass_time(0.5)
        made.sound.clear()
        made.pipeline.begin(2, 16_000)
        made.pipeline.push(tone(0.4))
        made.pipeline.end()
        await made.pass_time(1)
    assert sum(len(b) for _, b in made.sound) == round(0.4 * ROOM_RATE)
    assert [e.segment for _, e in made.events if isinstance(e, PlaybackFinished)] == [1, 2]


async def test_segments_queue_and_play_in_order_without_a_gap(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        for number in (1, 2, 3):
            made.pipeline.begin(number, 16_000)
            made.pipeline.push(tone(0.4))
            made.pipeline.end()
        await made.pass_time(2)
    assert made.kinds() == ["playback.started", "playback.finished"] * 3
    starts = [at for at, _ in made.sound]
    assert np.diff(starts).max() < 0.0401
    assert len(made.onsets()) == 1


async def test_an_empty_segment_is_finished_at_zero_and_never_started(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.end()
        await made.pass_time(0.3)
    assert [e for _, e in made.events] == [PlaybackFinished(segment=1, position_s=0.0, interrupted=False)]


async def test_clear_with_nothing_to_clear(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        assert made.pipeline.clear() == Cleared(dropped_s=0.0)
        await made.pass_time(0.2)
    assert made.kinds() == ["cleared"]


async def test_idle_keeps_its_rate(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pictures.clear()
        await made.pass_time(4.0)
    times = [t for t, _ in made.pictures]
    assert np.diff(times) == pytest.approx(np.full(len(times) - 1, 0.04), abs=1e-6)


@pytest.mark.parametrize("block", [160, 640, 1600, 3200])
async def test_any_block_size_of_a_live_sender_plays_without_underruns_in_the_long_run(
    executor: ThreadPoolExecutor, block: int
) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        await made.live(tone(4), block)
        made.pipeline.end()
        await made.pass_time(1)
    report = made.pipeline.player.report()
    # a sender of 200 ms blocks needs more than the first margin; it is found within a few of them
    assert report["underruns"] <= (4 if block == 3200 else 1)
    assert sum(len(b) for _, b in made.sound) == 4 * ROOM_RATE


class SlowEngine(PatternEngine):
    """Fails on every other frame."""

    calls = 0

    def infer(self, batch: list[PatchRequest]) -> list[Patch | None]:  # type: ignore[override]
        self.calls += 1
        if self.calls % 2:
            raise RuntimeError("no lips today")
        return super().infer(batch)


async def test_an_engine_that_fails_never_silences_the_voice(executor: ThreadPoolExecutor) -> None:
    async with stand(executor, engine=SlowEngine()) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(1))
        made.pipeline.end()
        await made.pass_time(2)
    assert sum(len(b) for _, b in made.sound) == ROOM_RATE
    stages = {s.stage: s for s in made.pipeline.stats.report()}
    assert "no lips today" in (stages["patches"].last_error or "")
    assert stages["composed"].count == 25


@pytest.mark.parametrize("block", [160, 320, 480, 640])
async def test_frames_that_stay_away_while_the_voice_goes_on_are_bridged(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    async with stand(executor) as made:
        player, renderer = made.pipeline.player, made.pipeline.renderer
        made.pipeline.begin(1, 16_000)
        await made.live(tone(1), block)
        monkeypatch.setattr(renderer, "poke", lambda: None)  # it learns of no more PCM
        await made.live(tone(0.4), block)
        held = player.report()["held"]
        monkeypatch.undo()
        renderer.poke()
        await made.live(tone(0.4), block)
        made.pipeline.end()
        await made.pass_time(1)
    assert held == REPEAT_FRAMES, "the last frame stays, and then the idle clip takes over"
    assert sum(len(b) for _, b in made.sound) == 1.8 * ROOM_RATE


async def test_cancelling_leaves_nothing(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(5))
        await made.pass_time(0.3)
    assert len(asyncio.all_tasks()) == 1


async def test_little_speech_is_heard_on_the_loop_and_much_in_a_thread(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop: list[tuple[int, bool]] = []
    loops = threading.get_ident()

    class Noted(PatternStream):
        def push(self, samples: Pcm) -> list[Feature]:
            on_loop.append((len(samples), threading.get_ident() == loops))
            return super().push(samples)

    monkeypatch.setattr(PatternFeatures, "stream", lambda self, fps: Noted(fps))
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        await made.live(tone(0.4))  # 40 ms at a time
        live, on_loop[:] = list(on_loop), []
        made.pipeline.push(tone(0.4))
        made.pipeline.end()
        await made.pass_time(2)
    assert live and all(here for _, here in live)
    assert sum(samples for samples, here in on_loop if not here) == 6_400
