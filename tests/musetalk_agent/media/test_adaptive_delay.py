"""The head start: what widens it, what gives it back, and what it cannot help."""

from __future__ import annotations

import pytest

from musetalk_agent.media.scheduler import AdaptiveDelay


def test_an_engine_that_looks_ahead_needs_less() -> None:
    assert AdaptiveDelay(0.0).seconds == 0.04
    assert AdaptiveDelay(0.08).seconds == 0.01


def test_late_pcm_widens_and_a_pause_does_not() -> None:
    start = AdaptiveDelay(0.0)
    start.on_underrun(10.0)
    assert not start.on_resume(10.5) and start.seconds == 0.04
    start.on_underrun(20.0)
    assert start.on_resume(20.15) and start.seconds == pytest.approx(0.06)
    assert not start.on_resume(20.2), "it was not dry again"


def test_it_never_passes_its_limit_and_comes_back() -> None:
    start = AdaptiveDelay(0.0)
    for _ in range(20):
        start.on_underrun(0.0)
        start.on_resume(0.1)
    assert start.seconds == pytest.approx(0.16)
    start.on_segment_end(100, 0)  # in which it was late
    assert start.seconds == pytest.approx(0.16)
    for _ in range(20):
        start.on_segment_end(100, 0)
    assert start.seconds == pytest.approx(0.04)


def test_an_engine_that_drops_pictures_is_given_time() -> None:
    start = AdaptiveDelay(0.08)
    start.on_segment_end(100, 3)
    assert start.seconds == pytest.approx(0.01), "a few are no pattern"
    start.on_segment_end(100, 4)
    assert start.seconds == pytest.approx(0.03)


def test_the_end_of_a_segment_is_not_held_against_the_next() -> None:
    start = AdaptiveDelay(0.0)
    start.on_underrun(10.0)
    start.on_segment_end(25, 0)
    assert not start.on_resume(10.1)
