"""A segment that somebody else began: the agent's part of it leaves when that one ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.protocol.messages import PlaybackFinished
from tests.musetalk_agent.stand import bursts, stand


async def test_it_waits_for_its_turn_and_counts_from_the_segments_own_beginning(executor: ThreadPoolExecutor) -> None:
    speech = bursts(3)
    async with stand(executor) as made:
        asked = made.clock.now()
        made.pipeline.begin(4, 16_000, heard_s=1.5, in_s=0.8)
        made.pipeline.push(speech)
        made.pipeline.end()
        await made.pass_time(0.75)
        assert made.sound == []
        await made.pass_time(5)
    assert made.sound[0][0] - asked == pytest.approx(0.8, abs=0.02)
    assert len(np.concatenate([block for _, block in made.sound])) == 3 * len(speech)
    assert max(abs(w - s) for w, s in zip(made.whites(), made.onsets(), strict=True)) < 0.002
    (finished,) = [event for _, event in made.events]
    assert isinstance(finished, PlaybackFinished)
    assert finished.position_s == pytest.approx(1.5 + len(speech) / 16_000, abs=0.001)
