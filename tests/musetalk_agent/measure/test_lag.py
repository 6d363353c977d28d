"""The lag of two mouths: planted lags come back whatever the pace and scale, and what cannot be measured has no confidence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_agent.measure.lip_measures import MouthTrack
from musetalk_agent.measure.measure_sync import LEAST_CONFIDENCE, LEAST_S, REACH_S, _quick, estimate_lag

Series = NDArray[np.float64]


def syllables(times: Series, seed: int = 0) -> Series:
    """A mouth that opens some four times a second, never twice alike: defined at every moment."""
    rng = np.random.default_rng(seed)
    opening = np.zeros(len(times))
    for _ in range(24):
        opening += rng.uniform(0.2, 1) * np.sin(2 * np.pi * rng.uniform(1.5, 6) * times + rng.uniform(0, 7))
    return np.asarray(0.05 + 0.01 * opening)


def heard(seconds: float = 8.0, seed: int = 0, start_s: float = 0.0) -> MouthTrack:
    """What the sound says, 50 times a second."""
    times = start_s + np.arange(round(seconds * 50)) / 50
    return MouthTrack(times, syllables(times, seed))


def seen(lag_s: float, fps: float = 25.0, seconds: float = 8.0, seed: int = 0) -> MouthTrack:
    """What the pictures show when the lips are that late."""
    times = np.arange(round(seconds * fps)) / fps
    return MouthTrack(times, syllables(times - lag_s, seed))


@given(st.floats(-0.45, 0.45), st.sampled_from([15.0, 23.976, 25.0, 30.0, 50.0]), st.integers(0, 50))
@settings(max_examples=30)
def test_a_planted_lag_comes_back_to_a_few_milliseconds(lag_s: float, fps: float, seed: int) -> None:
    found = estimate_lag(seen(lag_s, fps, seed=seed), heard(seed=seed))
    assert found is not None
    assert found.lag_s == pytest.approx(lag_s, abs=0.006) and found.correlation > 0.97


@given(st.floats(0.1, 50), st.floats(-3, 3), st.floats(-0.3, 0.3))
@settings(max_examples=20)
def test_how_far_the_mouth_opens_and_where_it_rests_does_not_matter(scale: float, rest: float, lag_s: float) -> None:
    plain = estimate_lag(seen(lag_s), heard())
    pictures = seen(lag_s)
    other = estimate_lag(MouthTrack(pictures.times, rest + scale * pictures.aperture), heard())
    assert plain is not None and other is not None
    assert other.lag_s == pytest.approx(plain.lag_s, abs=1e-6)
    assert other.correlation == pytest.approx(plain.correlation, abs=1e-6)


@pytest.mark.parametrize("drift", [lambda t: 0.3 * t, lambda t: 0.5 * np.sin(2 * np.pi * t / 6)])
def test_a_head_that_turns_slowly_does_not_hide_the_syllables(drift) -> None:  # type: ignore[no-untyped-def]  # ndarray to ndarray
    pictures = seen(0.12)
    found = estimate_lag(MouthTrack(pictures.times, pictures.aperture + drift(pictures.times)), heard())
    assert found is not None and found.lag_s == pytest.approx(0.12, abs=0.01) and found.confidence > 0.3


def test_both_tracks_may_begin_at_any_time_of_the_film_s_own() -> None:
    pictures, voice = seen(0.08), heard()
    moved = estimate_lag(
        MouthTrack(pictures.times + 3600, pictures.aperture), MouthTrack(voice.times + 3600, voice.aperture)
    )
    assert moved is not None and moved.lag_s == pytest.approx(0.08, abs=0.006)
    late_sound = estimate_lag(pictures, heard(7.0, start_s=1.0))
    assert late_sound is not None and late_sound.lag_s == pytest.approx(0.08, abs=0.006)


@given(st.sets(st.integers(0, 199), max_size=90))
@settings(max_examples=20)
def test_pictures_without_a_face_are_left_out(missing: set[int]) -> None:
    pictures = seen(-0.1)
    aperture = pictures.aperture.copy()
    aperture[sorted(missing)] = np.nan
    found = estimate_lag(MouthTrack(pictures.times, aperture), heard())
    assert found is not None and found.lag_s == pytest.approx(-0.1, abs=0.02)


@pytest.mark.parametrize("lag_s", [0.56, -0.56, 0.9, -2.0])
def test_a_lag_out_of_reach_is_not_reported_with_confidence(lag_s: float) -> None:
    found = estimate_lag(seen(lag_s), heard())
    assert found is not None and abs(found.lag_s) <= REACH_S + 0.005 and found.confidence < LEAST_CONFIDENCE


@pytest.mark.parametrize("lag_s", [0.51, -0.51])
def test_the_best_lag_at_the_edge_of_the_reach_has_no_confidence_at_all(lag_s: float) -> None:
    """The true one may lie beyond."""
    found = estimate_lag(seen(lag_s), heard())
    assert found is not None and abs(found.lag_s) == pytest.approx(REACH_S) and found.confidence == 0.0


def test_lips_that_move_against_the_voice_do_not_agree_with_it() -> None:
    pictures = seen(0.0)
    found = estimate_lag(MouthTrack(pictures.times, -pictures.aperture), heard())
    assert found is not None and (abs(found.lag_s) > 0.04 or found.correlation < 0)


@pytest.mark.parametrize(("seconds", "unheard", "answers"), [(3.0, 0.7, 0.9), (9.0, 1.1, 0.98)])
def test_a_mouth_that_is_half_heard_is_answered_rightly_and_a_stranger_s_is_not(
    seconds: float, unheard: float, answers: float
) -> None:
    """To the mouth that is heard comes `unheard` of another: the correlation is 0.8 and 0.67, as of real talkers."""
    errors, strangers = [], []
    for seed in range(100):
        lag_s = (-0.2, -0.12, -0.04, 0.0, 0.08, 0.16, 0.2)[seed % 7]
        voice, other = heard(seconds, 2 * seed), seen(0.0, seconds=seconds, seed=2 * seed + 1)
        pictures = seen(lag_s, seconds=seconds, seed=2 * seed)
        both = estimate_lag(MouthTrack(pictures.times, pictures.aperture + unheard * other.aperture), voice)
        stranger = estimate_lag(other, voice)
        assert both is not None and stranger is not None
        if both.confidence >= LEAST_CONFIDENCE:
            errors.append(abs(both.lag_s - lag_s))
        strangers.append(stranger.confidence >= LEAST_CONFIDENCE)
    assert len(errors) >= 100 * answers and max(errors) <= 0.04
    assert sum(strangers) <= 1


def test_a_mouth_that_repeats_itself_has_more_lags_than_one() -> None:
    """Every 300 ms alike: three lags fit, and none of them is sure, however high the correlation."""
    times, frames = np.arange(400) / 50, np.arange(200) / 25
    again = [0.05 + 0.02 * np.sin(2 * np.pi * at / 0.3) for at in (times, frames)]
    found = estimate_lag(MouthTrack(frames, again[1]), MouthTrack(times, again[0]))
    assert found is not None and found.correlation > 0.95 and 0.25 < found.confidence < 0.5


@pytest.mark.parametrize("still", ["pictures", "sound", "both"])
def test_what_does_not_move_agrees_with_nothing(still: str) -> None:
    pictures, voice = seen(0.0), heard()
    if still != "sound":
        pictures = MouthTrack(pictures.times, np.full(len(pictures.times), 0.02))
    if still != "pictures":
        voice = MouthTrack(voice.times, np.zeros(len(voice.times)))
    found = estimate_lag(pictures, voice)
    assert found is not None and found.correlation == pytest.approx(0) and found.confidence == pytest.approx(0)


@pytest.mark.parametrize(
    ("pictures", "voice"),
    [
        (seen(0, seconds=0), heard()),
        (seen(0, seconds=0.04), heard()),
        (seen(0), heard(0)),
        (seen(0), heard(0.02)),
        (seen(0, seconds=LEAST_S - 0.1), heard()),
        (seen(0), heard(LEAST_S - 0.1)),
        (seen(0), heard(8, start_s=7.0)),
        (MouthTrack(np.arange(200) / 25, np.full(200, np.nan)), heard()),
    ],
    ids=["no picture", "one", "no sound", "one step", "short film", "short sound", "little overlap", "no face"],
)
def test_too_little_to_compare_is_none(pictures: MouthTrack, voice: MouthTrack) -> None:
    assert estimate_lag(pictures, voice) is None


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(1, 30))
def test_the_moving_mean_is_that_of_the_neighbours_there_are(values: list[float], window: float) -> None:
    half = max(1, round(window / 2))
    want = []
    for at, value in enumerate(values):
        around = values[max(0, at - half) : at + half + 1]
        want.append(value - sum(around) / len(around))
    np.testing.assert_allclose(_quick(np.array(values), window), want, atol=1e-9)
