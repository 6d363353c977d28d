"""Measures of a mouth against a sound that is made up: exact where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.judge import bars, lips
from musetalk_agent.judge.film_report import Verdict
from musetalk_agent.measure.lip_measures import MouthTrack
from tests.musetalk_agent.measure.test_measure_sync import babble

FRAMES = np.arange(0, 10, 0.04)
STEPS = np.arange(0, 10, 0.02)


def heard(speech: np.ndarray, seed: int = 0) -> lips.Heard:
    return lips.Heard(MouthTrack(STEPS, babble(STEPS, seed)), speech.astype(bool), 0.0)


def test_speech_and_silence_are_known_by_time_and_pauses_belong_to_speech() -> None:
    flags = np.zeros(500, bool)
    flags[100:200] = flags[210:300] = True  # 2 … 4 s and 4.2 … 6 s; the detector is 60 ms late
    sound = heard(flags)
    at = np.array([1.0, 2.0, 4.05, 5.0, 6.2, 9.0, 20.0])
    assert sound.speaking(at).tolist() == [False, True, True, True, False, False, False]
    assert sound.silent(at).tolist() == [True, False, False, False, False, True, False]


@pytest.mark.parametrize(("lag_ms", "verdict"), [(0, Verdict.PASSED), (30, Verdict.PASSED), (100, Verdict.FAILED)])
def test_the_lag_is_held_against_its_bar(lag_ms: int, verdict: Verdict) -> None:
    seen = MouthTrack(FRAMES, babble(FRAMES - lag_ms / 1000))
    found = lips.follow(seen, heard(np.ones(500)))
    assert found.lag.verdict is verdict
    assert found.lag.value == pytest.approx(lag_ms, abs=4) and found.lag_s == pytest.approx(lag_ms / 1000, abs=0.004)
    assert found.correlation.verdict is Verdict.PASSED


def test_lips_of_other_speech_fail_by_correlation_and_not_by_lag() -> None:
    found = lips.follow(MouthTrack(FRAMES, babble(FRAMES, 7)), heard(np.ones(500)))
    assert found.correlation.verdict is Verdict.FAILED and len(found.correlation.worst) == 4
    assert found.lag.verdict is Verdict.NOT_JUDGED and found.lag_s == 0.0


def test_without_sound_or_with_too_little_speech_nothing_is_said() -> None:
    seen = MouthTrack(FRAMES, babble(FRAMES))
    assert lips.follow(seen, None).lag.reason == "the film has no sound."
    mute = lips.Heard(MouthTrack(STEPS, np.zeros(500)), np.zeros(500, bool), 0.0)
    assert "only 0.0 s of open-mouthed speech" in (lips.follow(seen, mute).correlation.reason or "")


def test_a_mouth_that_stands_still_for_two_seconds_of_speech_is_frozen_and_one_that_pauses_is_not() -> None:
    around = np.ones(250)
    mouth = np.full(250, 4.0)
    mouth[100:150] = 1.2
    speaking, silent = heard(np.ones(500)), heard(np.zeros(500))
    found = lips.frozen(FRAMES, mouth, around, speaking)
    assert found.verdict is Verdict.FAILED and found.value == pytest.approx(2.0, abs=0.8)
    assert found.worst and all(3.5 < time < 6.5 for time in found.worst)
    assert lips.frozen(FRAMES, mouth, around, silent).verdict is Verdict.NOT_JUDGED
    mouth[112:] = 4.0
    assert lips.frozen(FRAMES, mouth, around, speaking).verdict is Verdict.PASSED


def test_motion_in_silence_is_unrest_and_late_lips_are_not() -> None:
    flags = np.zeros(500, bool)
    flags[250:] = True
    still = np.where(FRAMES < 5, 0.01, 0.05 + 0.04 * np.sin(FRAMES * 20))
    assert lips.rest(FRAMES, still, heard(flags), 0.0).verdict is Verdict.PASSED
    restless = 0.06 + 0.05 * np.sin(FRAMES * 20)
    found = lips.rest(FRAMES, restless, heard(flags), 0.0)
    assert found.verdict is Verdict.FAILED and found.value == pytest.approx(0.05 / np.sqrt(2), rel=0.1)
    early = np.where(FRAMES < 4.2, 0.01, 0.05 + 0.04 * np.sin(FRAMES * 20))
    assert lips.rest(FRAMES, early, heard(flags), -0.8).verdict is Verdict.PASSED
    assert lips.rest(FRAMES, early, heard(np.ones(500)), 0.0).verdict is Verdict.NOT_JUDGED
    assert bars.REST < 0.05 / np.sqrt(2)
