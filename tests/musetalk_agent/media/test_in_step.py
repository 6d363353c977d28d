"""PCM that comes in any pattern: all of it is heard, in its order, and the lips leave with the sound they were made of."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.media.scheduler import LATE_FRAMES, REPEAT_FRAMES
from musetalk_agent.protocol.messages import PlaybackFinished
from tests.musetalk_agent.stand import RATE, Stand, bursts, stand

FRAME_S = 0.04


async def comes(made: Stand, pcm: np.ndarray, rng: random.Random, *, stalls: bool) -> None:
    """Pieces of 1 ms to 0.2 s, up to 0.1 s early or late; with `stalls` the sender pauses for up to a second now and then."""
    at, due = 0, made.clock.now()
    while at < len(pcm):
        piece = pcm[at : at + rng.randrange(16, 3200)]
        at += len(piece)
        due += len(piece) / RATE + (rng.uniform(0.3, 1.0) if stalls and rng.random() < 0.1 else 0.0)
        await made.clock.run(max(made.clock.now(), due + rng.uniform(-0.1, 0.1)))
        made.pipeline.push(piece)


@pytest.mark.parametrize("stalls", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_lips_leave_with_their_sound_whatever_the_arrivals(
    executor: ThreadPoolExecutor, seed: int, stalls: bool
) -> None:
    rng, speech = random.Random(seed), bursts(4)
    async with stand(executor) as made:
        made.pipeline.begin(1, RATE)
        await comes(made, speech, rng, stalls=stalls)
        made.pipeline.end()
        await made.pass_time(3)
    loud = np.concatenate([block for _, block in made.sound])
    assert int(np.count_nonzero(np.abs(loud) > 1000)) == pytest.approx(4 * 0.2 * 48_000 * 0.96, rel=0.02)
    moments = [at for at, _ in made.sound]
    assert moments == sorted(moments)
    assert all(
        b - a >= len(block) / 48_000 - 1e-6 for (a, block), (b, _) in zip(made.sound, made.sound[1:], strict=False)
    )
    moments_loud = np.concatenate([at + np.flatnonzero(np.abs(block) > 1000) / 48_000 for at, block in made.sound])
    held_s = (REPEAT_FRAMES + 1) * FRAME_S + 0.01
    for (at, white), (until, _) in itertools.pairwise(made.pictures):
        if white:  # with its sound, or held after it has run out
            assert np.abs(moments_loud - at).min() <= held_s
        else:  # a picture may be late by so much, and no more
            unseen = np.count_nonzero((moments_loud >= at) & (moments_loud < until)) / 48_000
            assert unseen <= LATE_FRAMES * FRAME_S + 0.002
    assert len(made.whites()) >= 4 and len(made.onsets()) >= 4
    finished = made.events[-1][1]
    assert isinstance(finished, PlaybackFinished) and not finished.interrupted
    assert finished.position_s == pytest.approx(len(speech) / RATE, abs=1e-3)
    assert made.kinds() == ["playback.started", "playback.finished"]


async def test_each_block_is_reported_with_its_second_of_the_segment_and_when_it_is_heard(
    executor: ThreadPoolExecutor,
) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(4, RATE, heard_s=1.5)
        made.pipeline.push(bursts(2))
        made.pipeline.end()
        await made.pass_time(3)
    assert {segment for _, segment, _ in made.said} == {4}
    assert [at for at, _, _ in made.said] == pytest.approx([at for at, _ in made.sound], abs=0.001)
    lengths = [len(block) / 48_000 for _, block in made.sound]
    seconds = [1.5 + before for before in itertools.accumulate(lengths, initial=0.0)]
    assert [second for _, _, second in made.said] == pytest.approx(seconds[:-1], abs=0.001)
