"""How many sessions a measured pace holds."""

from __future__ import annotations

from musetalk_agent.engines.musetalk.admission import HEADROOM, Pace


def test_capacity_is_the_best_buckets_pace_with_headroom() -> None:
    pace = Pace({1: 0.005, 4: 0.010, 16: 0.032})
    assert pace.frames_per_second == 500
    assert pace.capacity(25) == int(500 * HEADROOM / 25) == 15
    assert pace.capacity(30) == 12


def test_a_device_that_cannot_hold_one_session_says_none() -> None:
    assert Pace({1: 5.0}).capacity(25) == 0
    assert Pace().capacity(25) == 0
