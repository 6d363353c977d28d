"""The master clock against a sink that is simulated sample by sample."""

from __future__ import annotations

import pytest

from musetalk_agent.clock import VirtualClock
from musetalk_agent.media.playout import PlayoutClock

RATE = 48_000


async def test_position_follows_time_and_stops_when_dry() -> None:
    clock = VirtualClock()
    playout = PlayoutClock(clock, RATE, grain_s=0.0)
    playout.enqueue(4800)
    await clock.run(0.05)
    assert playout.position() == pytest.approx(2400, abs=1)
    assert playout.queued_s() == pytest.approx(0.05)
    await clock.run(0.3)
    assert playout.position() == 4800 and playout.empty
    playout.enqueue(4800)  # after a pause: heard from now, not from when the first would have ended
    assert playout.time_of(4800) == pytest.approx(0.3)


async def test_samples_handed_in_time_join_without_a_gap() -> None:
    clock = VirtualClock()
    playout = PlayoutClock(clock, RATE, grain_s=0.0)
    for step in range(100):
        playout.enqueue(960)
        await clock.run(0.02 * (step + 1) - 0.005)
    assert playout.time_of(960 * 50) == pytest.approx(1.0)


async def test_the_path_delays_what_is_heard_but_not_when_it_is_dry() -> None:
    clock = VirtualClock()
    playout = PlayoutClock(clock, RATE, grain_s=0.0, audio_delay_s=0.025)
    playout.enqueue(4800)
    assert playout.time_of(0) == pytest.approx(0.025)
    await clock.run(0.1)
    assert playout.empty and playout.position() == pytest.approx(3600, abs=1)


async def test_observations_correct_slowly_and_hiccups_at_once() -> None:
    clock = VirtualClock()
    playout = PlayoutClock(clock, RATE, grain_s=0.0)
    playout.enqueue(48_000)
    await clock.run(0.1)
    playout.observe(48_000 - 4800 + 80)  # the sink is 80 samples behind
    assert playout.position() == pytest.approx(4790, abs=1)
    playout.observe(48_000)  # nothing was heard at all
    assert playout.position() == pytest.approx(0, abs=1)


async def test_clear_tells_what_is_not_heard() -> None:
    clock = VirtualClock()
    playout = PlayoutClock(clock, RATE, grain_s=0.0)
    playout.enqueue(4800)
    await clock.run(0.04)
    assert playout.clear() == pytest.approx(2880, abs=1)
    assert playout.empty


async def test_a_rewound_clock_stands_until_the_sound_comes_again_and_never_undoes_what_is_settled() -> None:
    clock = VirtualClock()
    playout = PlayoutClock(clock, RATE, grain_s=0.0, audio_delay_s=0.025)
    playout.enqueue(48_000)
    await clock.run(0.5)
    assert playout.rewind(12_000) == 12_000
    await clock.run(0.7)
    assert (playout.position(), playout.enqueued, playout.empty) == (12_000, 12_000, True)
    playout.enqueue(4800)
    assert playout.time_of(12_000) == pytest.approx(0.725)
    assert playout.rewind(0) == 12_000
    playout.enqueue(4800)
    await clock.run(0.75)
    playout.clear()
    assert playout.rewind(12_000) == 14_400
