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
