"""Decisions about pictures, case by case."""

from __future__ import annotations

import pytest

from musetalk_agent.media.scheduler import Decision, FrameAction, Scheduler


def scheduler() -> Scheduler:
    return Scheduler(25, now=10.0)


def test_idle_keeps_the_beat() -> None:
    paced = scheduler()
    for k in range(1, 5):
        decision = paced.decide(10 + 0.04 * k - 0.01, waiting=False, due=None, missing=False)
        assert decision == Decision(FrameAction.IDLE, pytest.approx(10 + 0.04 * k))
        paced.done(decision)


def test_speech_sets_a_new_beat() -> None:
    paced = scheduler()
    first = paced.decide(10.0, waiting=True, due=10.015, missing=False)
    assert first == Decision(FrameAction.SHOW, 10.015)
    paced.done(first)
    assert paced.decide(10.02, waiting=False, due=None, missing=False).at == pytest.approx(10.055)


def test_speech_that_is_due_later_lets_idle_pictures_pass() -> None:
    assert scheduler().decide(10.0, waiting=True, due=10.2, missing=False) == Decision(
        FrameAction.IDLE, pytest.approx(10.04)
    )


def test_late_speech_is_dropped_only_past_one_and_a_half_frames() -> None:
    assert scheduler().decide(10.059, waiting=True, due=10.0, missing=False).act is FrameAction.SHOW
    late = scheduler()
    decision = late.decide(10.061, waiting=True, due=10.0, missing=False)
    assert decision.act is FrameAction.DROP
    late.done(decision)
    assert late.dropped == 1


def test_a_missing_picture_holds_three_beats_then_idles() -> None:
    paced, acts = scheduler(), []
    for k in range(1, 6):
        decision = paced.decide(10 + 0.04 * k, waiting=False, due=None, missing=True)
        acts.append(decision.act)
        paced.done(decision)
    assert acts[:4] == [FrameAction.HOLD, FrameAction.HOLD, FrameAction.HOLD, FrameAction.IDLE]
    assert paced.held >= 3


def test_a_long_stall_begins_a_new_beat_instead_of_a_burst() -> None:
    paced = scheduler()
    decision = paced.decide(11.0, waiting=False, due=None, missing=False)
    assert decision == Decision(FrameAction.IDLE, 11.0)
    paced.done(decision)
    assert paced.decide(11.0, waiting=False, due=None, missing=False).at == pytest.approx(11.04)
    assert paced.stalls == 1


def test_closing_pictures_keep_the_beat() -> None:
    assert scheduler().decide(10.0, waiting=True, due=None, missing=False) == Decision(
        FrameAction.SHOW, pytest.approx(10.04)
    )
