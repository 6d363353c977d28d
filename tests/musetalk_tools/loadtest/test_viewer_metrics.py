"""Percentiles, moments of sound and pictures, and what is made of them: no clock, no network."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_tools.loadtest.speech_source import Loudness, Whiteness
from musetalk_tools.loadtest.thresholds import judge
from musetalk_tools.loadtest.viewer_messages import Seen
from musetalk_tools.loadtest.viewer_metrics import Histogram, Tallies, ViewerMetrics

RATE = 16_000


def _tone(seconds: float) -> np.ndarray:
    return (16_000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def test_percentiles_are_those_of_the_values() -> None:
    values = np.random.default_rng(1).gamma(2, 30, 5000)
    tally = Histogram("ms", 0.1)
    for value in values:
        tally.add(float(value))
    figure = tally.figure()
    assert figure is not None and figure.count == 5000 and figure.unit == "ms"
    for q, reported in ((5, figure.p5), (50, figure.p50), (95, figure.p95), (99, figure.p99)):
        assert reported == pytest.approx(np.percentile(values, q, method="nearest"), abs=0.11)
    assert figure.max == pytest.approx(values.max(), abs=0.06) and figure.mean == pytest.approx(values.mean(), abs=0.06)


def test_a_tally_is_bounded_and_knows_when_it_is_empty() -> None:
    tally = Histogram("ms", 1)
    assert tally.figure() is None
    for value in (1e12, -1e12, 2e12):
        tally.add(value)
    figure = tally.figure()
    assert figure is not None and (figure.min, figure.max, figure.count) == (-1e6, 1e6, 3)


def test_onsets_are_to_the_sample_however_the_blocks_fall() -> None:
    quiet = np.zeros(RATE // 2, np.int16)
    pcm = np.concatenate([quiet, _tone(0.2), quiet, _tone(0.3), quiet])
    loud = np.flatnonzero(np.abs(pcm.astype(int)) > 2000) / RATE
    begins = [loud[0], loud[loud > 1.0][0]]
    ends = [loud[loud < 1.0][-1], loud[-1]]
    for size in (160, 333, 4800):
        sound = Loudness(RATE)
        for at in range(0, len(pcm), size):
            block = pcm[at : at + size]
            sound.push((at + len(block) - 1) / RATE, block)
        assert sound.onsets == pytest.approx(begins, abs=1e-6)
        assert sound.offsets == pytest.approx(ends, abs=1e-6)


def test_a_picture_turns_white_once_and_not_at_first_sight() -> None:
    black, white = np.full((64, 64), 16, np.uint8), np.full((64, 64), 127, np.uint8)
    white[16:48, 16:48] = 235
    centre = Whiteness()
    for at, picture in enumerate((white, black, white, white, black, white)):
        centre.push(float(at), picture)
    assert centre.whites == [2.0, 5.0]


def _frames(begin: float, count: int) -> list[float]:
    return [begin + k / 25 for k in range(count)]


def test_latency_skew_and_losses_of_a_session() -> None:
    tallies = Tallies()
    sight = ViewerMetrics(tallies, 0.95)
    sight.pattern = True
    for mark in (10.0, 11.0, 12.0):
        sight.spoke(mark)
    sight.take(Seen(name="0", frames=_frames(9.0, 50), onsets=[10.080, 11.100], whites=[10.085, 11.095, 12.5]))
    sight.settle(11.9)
    assert sight.said == 0  # too early to tell
    sight.settle(14.0)
    assert (sight.said, sight.heard, sight.shown) == (3, 2, 3)
    sound, picture, skew = tallies.sound_ms.figure(), tallies.picture_ms.figure(), tallies.skew_ms.figure()
    assert sound and picture and skew
    assert (sound.min, sound.max) == (80.0, 100.0)
    assert (picture.min, picture.max) == (85.0, 500.0)
    assert (skew.count, skew.min, skew.max) == (2, -5.0, 5.0)


def test_a_mark_is_never_taken_for_the_next_ones_sound() -> None:
    tallies = Tallies()
    sight = ViewerMetrics(tallies, 0.95)
    sight.spoke(10.0)
    sight.spoke(11.0)
    sight.take(Seen(name="0", onsets=[11.08]))
    sight.settle(20.0)
    assert (sight.said, sight.heard) == (2, 1)
    figure = tallies.sound_ms.figure()
    assert figure and figure.max == 80.0


def test_no_sound_is_two_marks() -> None:
    tallies = Tallies()
    sight = ViewerMetrics(tallies, 0.95)
    sight.spoke(10.0)
    sight.spoke(10.95)
    sight.take(Seen(name="0", onsets=[10.93]))
    sight.settle(20.0)
    assert (sight.said, sight.heard) == (2, 1)


def test_an_interruption_lasts_until_the_last_sound_that_follows() -> None:
    tallies = Tallies()
    sight = ViewerMetrics(tallies, 0.95)
    sight.interrupted(100.0)
    sight.interrupted(110.0)  # nothing was loud then: no figure
    sight.take(Seen(name="0", offsets=[99.0, 100.03, 100.07, 103.0]))
    sight.settle(120.0)
    figure = tallies.interrupt_ms.figure()
    assert figure and (figure.count, figure.max) == (1, 70.0)


def test_frame_rate_gaps_and_missing_pictures() -> None:
    tallies = Tallies()
    sight = ViewerMetrics(tallies, 0.95)
    assert sight.window().fps is None and sight.missing(25) == 0
    sight.take(Seen(name="0", frames=_frames(0.0, 51)))
    window = sight.window()
    assert window.fps == pytest.approx(25) and window.gap_ms == pytest.approx(40)
    sight.take(Seen(name="0", frames=_frames(2.2, 46)))  # four never came
    window = sight.window()
    assert window.gap_ms == pytest.approx(200) and window.fps == pytest.approx(46 / 2)
    assert sight.missing(25) == 4
    assert sight.window().fps == 0.0  # it stands still


def test_bars() -> None:
    tally = Histogram("s", 0.001)
    tally.add(0.8)
    figure = tally.figure()
    assert figure is not None
    bars = {"max-p95-start": 1.0, "min-p5-fps": 24.0, "max-move": 5.0}
    reported = {each.option: each for each in judge(bars, {"start_s": figure}, failed=1)}
    assert reported["max-p95-start"].held and reported["max-p95-start"].value == 0.8
    assert not reported["min-p5-fps"].held and reported["min-p5-fps"].value is None  # nothing measured is nothing shown
    assert reported["max-move"].held  # none has moved
    assert not reported["max-failed"].held  # by default none may fail
    assert judge({"max-failed": 1}, {}, failed=1)[0].held
    fast = judge({"min-p5-fps": 24.0}, {"fps": figure}, failed=0)
    assert [each.held for each in fast] == [True, False]
