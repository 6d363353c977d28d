"""What is reported of a voice that is published elsewhere."""

from __future__ import annotations

import itertools
import math

from musetalk_agent.media.playout import VoiceTiming, VoiceTimingQueue


def test_it_is_reported_when_it_begins_pauses_goes_on_moves_and_now_and_then() -> None:
    calls: list[int] = []
    due = VoiceTimingQueue(lambda: calls.append(1))
    due.plays(1, 0.0, 10.0)
    for step in range(1, 10):
        due.plays(1, 0.04 * step, 10 + 0.04 * step)
    assert due.take() == [VoiceTiming(1, 0.0, 10.0)]
    due.plays(1, 0.4, 10.406)  # later than was promised
    due.holds(1, 0.44, 10.446)
    due.holds(1, 0.44, 10.446)
    due.plays(1, 0.44, 11.0)
    assert due.take() == [
        VoiceTiming(1, 0.4, 10.406),
        VoiceTiming(1, 0.44, 10.446, held=True),
        VoiceTiming(1, 0.44, 11.0),
    ]
    for step in range(100):
        due.plays(1, 0.44 + 0.04 * step, 11 + 0.04 * step)
    times = [d.at for d in due.take()]
    assert len(times) == 7 and max(b - a for a, b in itertools.pairwise(times)) <= 0.56
    due.plays(2, 0.0, 15.0)
    due.clear()
    assert due.take() == []
    due.plays(2, 0.04, 15.04)
    assert due.take() == [VoiceTiming(2, 0.04, 15.04)]
    assert len(calls) == 13


def test_only_the_newest_wait_and_nothing_is_reported_of_a_time_that_nobody_knows() -> None:
    due = VoiceTimingQueue(lambda: None)
    for number in range(100):
        due.plays(number, 0.0, float(number))
    assert [d.segment for d in due.take()] == list(range(92, 100))
    due.plays(100, 0.0, math.inf)
    due.holds(100, 0.0, math.inf)
    assert due.take() == []
