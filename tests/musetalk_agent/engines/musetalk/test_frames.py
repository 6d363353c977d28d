"""Which frame is which: our whole numbers beside upstream's floats, for every length up to 200,000 samples."""

from __future__ import annotations

import pytest

from musetalk_agent.compose.idle import PingPongLoop
from musetalk_agent.media_types import frames_complete
from tests.reference import musetalk as reference


@pytest.mark.parametrize("fps", [15, 24, 25, 30, 50, 60])
def test_frames_of_a_sound_are_upstreams_but_for_those_its_rounding_loses(fps: int) -> None:
    lost = 0
    for samples in range(1, 200_001):
        ours, theirs = frames_complete(samples, fps), reference.frame_count(samples, fps)
        if ours != theirs:
            assert ours == theirs + 1 and samples * fps % 16_000 == 0, samples
            lost += 1
    exact = 200_000 * fps // 16_000
    assert lost < exact / 4


def test_upstream_loses_the_last_frame_of_116_hundredths() -> None:
    assert reference.frame_count(18_560, 25) == 28 and frames_complete(18_560, 25) == 29


def test_the_idle_cycle_is_upstreams_without_the_doubled_ends() -> None:
    for frames in (1, 2, 3, 7):
        cycle = PingPongLoop(frames)
        ours = [cycle.idle_index(tick) for tick in range(4 * frames)]
        order = [reference.latent_of(k, frames) for k in range(8 * frames)]
        theirs = [idle_index for k, idle_index in enumerate(order) if k == 0 or idle_index != order[k - 1]]
        assert ours[: len(theirs)] == theirs[: len(ours)]
