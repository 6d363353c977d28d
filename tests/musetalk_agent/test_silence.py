"""Silence inside a segment: the mouth and the engine rest, sound and positions go on, and speech returns whole and in step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.protocol.messages import PlaybackFinished
from tests.musetalk_agent.stand import RATE, Stand, stand, tone


def _patches(made: Stand) -> int:
    return next(s.count for s in made.pipeline.stats.report() if s.stage == "patches")


def _heard(made: Stand) -> np.ndarray:
    return np.concatenate([block for _, block in made.sound])


QUIET = {
    "zeros": np.zeros(6 * RATE, np.int16),
    "noise at -60 dBFS": np.random.default_rng(1).normal(0, 32, 6 * RATE).astype(np.int16),
}


@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("fps", [25, 30, 24, 50, 60, 15])
async def test_silence_rests_the_engine_and_the_next_word_is_whole_and_in_step(
    executor: ThreadPoolExecutor, name: str, fps: int
) -> None:
    words, quiet = tone(0.8), QUIET[name]
    async with stand(executor, fps) as made:
        made.pipeline.begin(1, RATE)
        await made.live(words, 320)
        begun = made.clock.now()
        await made.live(quiet[:RATE], 320)
        before, position = _patches(made), made.pipeline.player.position_s
        await made.live(quiet[RATE:], 320)
        assert _patches(made) == before
        assert made.pipeline.player.position_s - position == pytest.approx(5, abs=0.05)
        assert made.kinds() == ["playback.started"]  # the segment is still open
        returned = made.clock.now()
        await made.live(words, 320)
        made.pipeline.end()
        await made.pass_time(1)
    states = [(at, speaking) for at, speaking in made.spoken]
    assert [speaking for _, speaking in states] == [True, False, True, False]
    assert states[1][0] - begun <= 0.6
    assert 0 <= states[2][0] - returned <= 0.2
    heard = _heard(made)
    assert len(heard) == pytest.approx((2 * 0.8 + 6) * ROOM_RATE, abs=ROOM_RATE // fps + 480)
    assert len(made.whites()) == len(made.onsets(2000)) == 2
    slack = 0.002 if fps in (25, 50) else 1 / fps
    assert max(abs(w - s) for w, s in zip(made.whites(), made.onsets(2000), strict=True)) <= slack
    finished = made.events[-1][1]
    assert isinstance(finished, PlaybackFinished) and finished.position_s == pytest.approx(7.6, abs=0.001)


@pytest.mark.parametrize("fps", [25, 30])
async def test_a_pause_in_speech_that_came_at_once_is_kept_and_the_idle_clip_goes_on_in_it(
    executor: ThreadPoolExecutor, fps: int
) -> None:
    pause = np.zeros(3 * RATE, np.int16)
    async with stand(executor, fps) as made:
        made.pipeline.begin(1, RATE)
        made.pipeline.push(np.concatenate([tone(0.8), pause, tone(0.8), pause, tone(0.8)]))
        made.pipeline.end()
        await made.pass_time(10)
    assert len(_heard(made)) == pytest.approx(8.4 * ROOM_RATE, abs=ROOM_RATE // fps + 480)
    assert np.diff(made.onsets()) == pytest.approx([3.8, 3.8], abs=0.001)
    slack = 0.002 if fps == 25 else 1 / fps
    assert max(abs(w - s) for w, s in zip(made.whites(), made.onsets(), strict=True)) <= slack
    assert [speaking for _, speaking in made.spoken] == [True, False, True, False, True, False]
    times = np.array([t for t, _ in made.pictures])
    assert np.diff(times).max() < 2.5 / fps  # no picture stands for longer than a stumble
    assert made.pipeline.player.report()["cut_ms"] == 0
    assert _patches(made) <= fps * (3 * 0.8 + 2 * 0.5) + 6


async def test_the_delay_of_a_stall_ends_in_the_next_silence(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, RATE)
        await made.live(tone(1), 320)
        await made.pass_time(0.88)  # the sender's network is gone, and what it sent meanwhile comes at once
        made.pipeline.push(tone(0.88))
        await made.live(tone(1), 320)
        late = made.pipeline.player.buffered_s
        await made.live(np.zeros(3 * RATE, np.int16), 320)
        in_time = made.pipeline.player.buffered_s
        returned = made.clock.now()
        await made.live(tone(0.5), 320)
        made.pipeline.end()
        await made.pass_time(2)
    assert late > 0.8 and in_time < 0.2
    onset, white = made.onsets()[-1], made.whites()[-1]
    assert abs(white - onset) < 0.002
    assert onset - returned < 0.2
    finished = made.events[-1][1]
    assert isinstance(finished, PlaybackFinished) and finished.position_s == pytest.approx(6.38, abs=0.001)
    loud = int(np.sum(np.abs(_heard(made)) > 500))
    assert loud == pytest.approx(
        int(np.sum(np.abs(np.repeat(tone(3.38), 3)) > 500)), rel=0.01
    )  # nothing but silence was cut


async def test_a_clear_in_silence_and_a_rewind_over_it(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, RATE)
        await made.live(np.concatenate([tone(0.8), np.zeros(2 * RATE, np.int16)]), 320)
        made.pipeline.rewind(round(0.4 * ROOM_RATE))
        await made.live(np.zeros(RATE, np.int16), 320)
        assert made.onsets()[-1] > 2.8  # the second half of the word came again
        made.pipeline.clear()
        await made.pass_time(0.5)
        made.pipeline.begin(2, RATE)
        await made.live(tone(0.5), 320)
        made.pipeline.end()
        await made.pass_time(1)
    assert made.kinds()[-2:] == ["playback.started", "playback.finished"]
    assert abs(made.whites()[-1] - made.onsets()[-1]) < 0.002
