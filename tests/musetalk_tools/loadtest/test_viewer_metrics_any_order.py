"""What a viewer saw, for any speech and any moments of arrival: against a slow model, and however the reports were cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_tools.loadtest.speech_source import LOUD, QUIET_S, WHITE, Loudness, Whiteness
from musetalk_tools.loadtest.viewer_messages import Seen
from musetalk_tools.loadtest.viewer_metrics import INTERRUPT_WINDOW_S, SETTLED_S, Histogram, Tallies, ViewerMetrics

WINDOW_S = 0.95
RATE = 1000
"""Samples a second in these tests: a sample is a millisecond."""


@dataclass(frozen=True)
class Mark:
    """A moment of the speech, and when its sound and its picture came; None: never."""

    sound_s: float | None
    picture_s: float | None


_delay = st.one_of(st.none(), st.integers(0, 900).map(lambda ms: ms / 1000))
_marks = st.lists(st.builds(Mark, sound_s=_delay, picture_s=_delay), max_size=12)


def counted(tally: Histogram) -> tuple[int, float, float]:
    figure = tally.figure()
    return (0, 0.0, 0.0) if figure is None else (figure.count, figure.min, figure.max)


def settled(marks: list[Mark], pattern: bool, cuts: set[int]) -> tuple[ViewerMetrics, Tallies]:
    """A sight to which marks a second apart came, its reports cut where `cuts` says; settled as the run does, as time passes."""
    tallies = Tallies()
    sight = ViewerMetrics(tallies, WINDOW_S)
    sight.pattern = pattern
    events = [("mark", 10.0 + n, 10.0 + n) for n in range(len(marks))]
    events += [("onset", t, 10.0 + n + t) for n, m in enumerate(marks) if (t := m.sound_s) is not None]
    events += [("white", t, 10.0 + n + t) for n, m in enumerate(marks) if (t := m.picture_s) is not None]
    seen = Seen(name="0")
    for index, (kind, _, at) in enumerate(sorted(events, key=lambda event: event[2])):
        if kind == "mark":
            sight.spoke(at)
        else:
            (seen.onsets if kind == "onset" else seen.whites).append(at)
        if index in cuts:
            sight.take(seen)
            seen = Seen(name="0")
            sight.settle(at)
    sight.take(seen)
    sight.settle(1000.0)
    return sight, tallies


@given(marks=_marks, pattern=st.booleans())
def test_every_mark_has_its_own_sound_and_picture(marks: list[Mark], pattern: bool) -> None:
    sight, tallies = settled(marks, pattern, set())
    sounds = [1000 * m.sound_s for m in marks if m.sound_s is not None]
    pictures = [1000 * m.picture_s for m in marks if m.picture_s is not None] if pattern else []
    both = [(m.picture_s - m.sound_s) for m in marks if pattern and m.picture_s is not None and m.sound_s is not None]
    skews = [1000 * skew for skew in both if abs(skew) <= 0.5 + 1e-9]
    assert (sight.said, sight.heard, sight.shown) == (len(marks), len(sounds), len(pictures))
    for tally, values in ((tallies.sound_ms, sounds), (tallies.picture_ms, pictures)):
        assert counted(tally) == pytest.approx((len(values), min(values, default=0), max(values, default=0)), abs=0.051)
    count, low, high = counted(tallies.skew_ms)
    assert abs(count - len(skews)) <= sum(abs(abs(skew) - 0.5) < 1e-6 for skew in both), "half a second is the edge"
    if count == len(skews):
        assert (low, high) == pytest.approx((min(skews, default=0), max(skews, default=0)), abs=0.051)
    assert len(tallies.skew_abs_ms) == count and counted(tallies.skew_abs_ms)[1] >= 0


@given(marks=_marks, cuts=st.sets(st.integers(0, 40)))
def test_it_does_not_matter_how_reports_are_cut_or_how_often_it_is_settled(marks: list[Mark], cuts: set[int]) -> None:
    whole, cut = settled(marks, True, set()), settled(marks, True, cuts)
    assert (whole[0].said, whole[0].heard, whole[0].shown) == (cut[0].said, cut[0].heard, cut[0].shown)
    for name in ("sound_ms", "picture_ms", "skew_ms", "skew_abs_ms"):
        assert getattr(whole[1], name).figure() == getattr(cut[1], name).figure()


def test_a_mark_is_settled_when_its_window_has_closed_and_not_before() -> None:
    sight = ViewerMetrics(Tallies(), WINDOW_S)
    sight.spoke(10.0)
    sight.settle(10.0 + WINDOW_S + SETTLED_S)
    assert sight.said == 0
    sight.settle(10.0 + WINDOW_S + SETTLED_S + 0.01)
    sight.settle(10.0 + WINDOW_S + SETTLED_S + 0.01)
    assert sight.said == 1


@pytest.mark.parametrize(
    ("onset", "heard"), [(9.949, 0), (9.951, 1), (10.0, 1), (10.9, 1), (10.949, 1), (10.951, 0), (12.0, 0)]
)
def test_the_window_of_a_mark_begins_50_ms_before_it_and_ends_before_the_next_one(onset: float, heard: int) -> None:
    sight = ViewerMetrics(Tallies(), WINDOW_S)
    sight.spoke(10.0)
    sight.take(Seen(name="0", onsets=[onset]))
    sight.settle(100.0)
    assert sight.heard == heard


@pytest.mark.parametrize(
    ("offsets", "reported_ms"),
    [
        ([], None),
        ([99.99], None),
        ([100.0], 0.0),
        ([100.2, 100.4], 400.0),
        ([99.0, 100.1, 101.9], 1900.0),
        ([102.0], None),
        ([102.5], None),
    ],
)
def test_an_interruption_ends_with_the_last_sound_within_two_seconds(
    offsets: list[float], reported_ms: float | None
) -> None:
    tallies = Tallies()
    sight = ViewerMetrics(tallies, WINDOW_S)
    sight.interrupted(100.0)
    sight.take(Seen(name="0", offsets=offsets))
    sight.settle(100.0 + INTERRUPT_WINDOW_S + SETTLED_S)
    assert len(tallies.interrupt_ms) == 0, "too early"
    sight.settle(110.0)
    figure = tallies.interrupt_ms.figure()
    assert (figure.max if figure else None) == reported_ms


def test_what_nobody_asked_for_is_forgotten() -> None:
    """Sound between the marks must not fill the memory of an hour's run."""
    sight = ViewerMetrics(Tallies(), WINDOW_S)
    for second in range(3600):
        sight.take(Seen(name="0", onsets=[float(second)], whites=[float(second)], offsets=[second + 0.2]))
        sight.settle(float(second))
    assert max(len(sight._onsets), len(sight._whites), len(sight._offsets)) <= 13


_steps = st.lists(st.integers(1, 400), max_size=60)


@given(steps=_steps, cuts=st.sets(st.integers(0, 60)), fps=st.sampled_from([10, 25, 30]))
def test_pictures_are_counted_whatever_the_windows(steps: list[int], cuts: set[int], fps: int) -> None:
    at = [5.0 + sum(steps[:n]) / 1000 for n in range(len(steps) + 1)]
    tallies = Tallies()
    sight = ViewerMetrics(tallies, WINDOW_S)
    windows = []
    for index, moment in enumerate(at):
        sight.take(Seen(name="0", frames=[moment]))
        if index in cuts:
            windows.append(sight.window())
    windows.append(sight.window())
    assert sight.frames == len(at) and (sight.first, sight.last) == (at[0], at[-1])
    assert sum(window.frames for window in windows) == len(steps), "every picture but the first is in one window"
    assert max(window.gap_ms for window in windows) == pytest.approx(max(steps, default=0), abs=1e-6)
    assert counted(tallies.gap_ms)[0] == len(steps)
    for window in windows:
        if window.frames and window.since is not None:
            assert window.fps == pytest.approx(window.frames / (window.last - window.since))
    assert sight.missing(fps) == max(0, round((at[-1] - at[0]) * fps) + 1 - len(at))


# --- when sound begins and ends, and when a picture turns white

_stretches = st.lists(st.tuples(st.booleans(), st.integers(1, 250)), max_size=12)


def slow_moments(loud: list[bool]) -> tuple[list[int], list[int]]:
    """Onsets and ends of loud stretches, looked at sample by sample; a pause up to `QUIET_S` is none."""
    onsets, offsets = list[int](), list[int]()
    last: int | None = None
    for n, is_loud in enumerate(loud):
        if last is not None and n - last > QUIET_S * RATE:
            offsets.append(last)
            last = None
        if is_loud:
            if last is None:
                onsets.append(n)
            last = n
    return onsets, offsets


@given(stretches=_stretches, sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5))
def test_onsets_and_ends_are_those_of_a_look_at_every_sample(
    stretches: list[tuple[bool, int]], sizes: list[int]
) -> None:
    loud = [is_loud for is_loud, count in stretches for _ in range(count)]
    pcm = np.where(loud, LOUD + 1, LOUD).astype(np.int16) * np.where(np.arange(len(loud)) % 2, -1, 1).astype(np.int16)
    sound = Loudness(RATE)
    at = block = 0
    while at < len(pcm):
        part = pcm[at : at + sizes[block % len(sizes)]]
        at, block = at + len(part), block + 1
        sound.push((at - 1) / RATE, part)
    onsets, offsets = slow_moments(loud)
    assert sound.onsets == pytest.approx([n / RATE for n in onsets])
    assert sound.offsets == pytest.approx([n / RATE for n in offsets])


def test_the_loudest_negative_sample_is_loud() -> None:
    sound = Loudness(RATE)
    sound.push(0.0, np.array([-32768], np.int16))
    assert sound.onsets == [0.0], "its absolute value is no int16"


@given(pictures=st.lists(st.integers(0, 255), max_size=20))
def test_a_picture_turns_white_where_the_one_before_was_not(pictures: list[int]) -> None:
    centre = Whiteness()
    for at, luma in enumerate(pictures):
        centre.push(float(at), np.full((48, 64), luma, np.uint8))
    white = [True, *(luma > WHITE for luma in pictures)]
    assert centre.whites == [float(n) for n in range(len(pictures)) if white[n + 1] and not white[n]]


def test_only_the_centre_counts() -> None:
    edges, middle = np.full((64, 64), 255, np.uint8), np.zeros((64, 64), np.uint8)
    edges[24:40, 24:40] = 0
    middle[24:40, 24:40] = 255
    centre = Whiteness()
    for at, picture in enumerate((edges, middle, edges, middle)):
        centre.push(float(at), picture)
    assert centre.whites == [1.0, 3.0]
