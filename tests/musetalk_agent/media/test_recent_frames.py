"""`degraded` goes by time: it sets in within a second of speech and is over five seconds after the last bad frame."""

from __future__ import annotations

import pytest

from musetalk_agent.media.scheduler import WINDOW_S, Outcome, RecentFrames

FPS = 25


def feed(
    recent: RecentFrames, begin: float, seconds: float, *, bad_every: int = 0, bad: Outcome = Outcome.LATE
) -> float:
    """`seconds` of speech from `begin`, every so many-th frame bad; returns when it is over."""
    for index in range(round(seconds * FPS)):
        wrong = bad_every and index % bad_every == 0
        recent.note(begin + index / FPS, bad if wrong else Outcome.SHOWN)
    return begin + seconds


@pytest.mark.parametrize("bad", [Outcome.LATE, Outcome.FAILED])
def test_it_sets_in_soon_even_after_minutes_of_good_speech(bad: Outcome) -> None:
    recent = RecentFrames(FPS)
    now = feed(recent, 0, 60)
    assert not recent.degraded(now)
    now = feed(recent, now, 1.0, bad_every=1, bad=bad)
    assert recent.degraded(now) and recent.share(now, bad) == pytest.approx(0.2, abs=0.02)


def test_it_is_over_five_seconds_later_without_a_word_being_said() -> None:
    recent = RecentFrames(FPS)
    now = feed(recent, 0, 3, bad_every=2)
    assert recent.degraded(now)
    assert recent.degraded(now + WINDOW_S - 1)
    assert not recent.degraded(now + WINDOW_S) and recent.share(now + WINDOW_S, Outcome.LATE) == 0


def test_it_is_over_while_speech_goes_on() -> None:
    recent = RecentFrames(FPS)
    now = feed(recent, 0, 3, bad_every=2)
    assert recent.degraded(now)
    now = feed(recent, now, WINDOW_S)
    assert not recent.degraded(now)


def test_a_share_between_the_thresholds_changes_nothing() -> None:
    recent = RecentFrames(FPS)
    now = feed(recent, 0, 6, bad_every=13)  # 7.7 %
    assert not recent.degraded(now)
    now = feed(recent, now, 6, bad_every=4)
    assert recent.degraded(now)
    now = feed(recent, now, 6, bad_every=13)
    assert recent.degraded(now)
    now = feed(recent, now, 6, bad_every=50)
    assert not recent.degraded(now)


def test_a_single_bad_frame_of_a_short_word_is_nothing() -> None:
    recent = RecentFrames(FPS)
    assert not recent.degraded(feed(recent, 0, 0.4, bad_every=1))
