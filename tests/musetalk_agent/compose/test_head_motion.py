"""How a still picture's head moves, by properties that hold for every seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.compose.head_motion import AS_IT_IS, MEMORY_S, HeadMotion, Pose, seed_of

FPS = 25
SEEDS = st.integers(0, 2**32 - 1)
SYLLABLES = st.dictionaries(st.integers(0, 16).map(lambda k: 12 * k), st.floats(0.3, 1), max_size=16)
SPEECH = st.tuples(st.lists(st.integers(0, 200), max_size=80), SYLLABLES).map(
    lambda each: {**dict.fromkeys(each[0], 0.0), **each[1]}
)
"""Positions and their stress; stressed syllables are half a second apart, as `StressMeter` has them."""


def spoken(seed: int, speech: dict[int, float], fps: int = FPS) -> HeadMotion:
    motion = HeadMotion(seed, fps)
    for position, stress in speech.items():
        motion.speak(position, stress)
    return motion


def head(pose: Pose) -> np.ndarray:
    """Yaw, pitch and roll in degrees, shifts and size in thousandths."""
    return np.array([*np.degrees(pose[:3]), *(1000 * value for value in pose[3:6])])


@given(SEEDS, SPEECH)
@settings(max_examples=40)
def test_it_begins_as_the_picture_is_and_never_jumps(seed: int, speech: dict[int, float]) -> None:
    motion = spoken(seed, speech)
    assert max(abs(value) for value in motion.pose(0)) < 1e-9
    path = np.stack([head(motion.pose(position)) for position in range(260)])
    steps = np.abs(np.diff(path, axis=0)).max(0)
    assert (steps < (2, 3.5, 1.2, 3, 3, 13)).all(), "degrees and thousandths of the face's width a frame"
    assert (np.abs(path).max(0) < (7, 14, 4, 30, 25, 50)).all()


@given(SEEDS, SPEECH, st.integers(0, 220))
@settings(max_examples=40)
def test_a_pose_depends_on_the_speech_before_it_and_not_on_the_order(
    seed: int, speech: dict[int, float], at: int
) -> None:
    whole = spoken(seed, speech).pose(at)
    backwards = spoken(seed, dict(reversed(speech.items())))
    backwards.pose(250)
    assert backwards.pose(at) == whole
    first = at - math.ceil(MEMORY_S * FPS) - 1
    near = {position: stress for position, stress in speech.items() if first <= position <= at}
    assert spoken(seed, near).pose(at) == pytest.approx(whole)


@given(SEEDS, SPEECH, st.integers(0, 200))
@settings(max_examples=40)
def test_what_is_cleared_was_never_spoken(seed: int, speech: dict[int, float], at: int) -> None:
    cleared = spoken(seed, speech)
    cleared.drop_after(at)
    never = spoken(seed, {position: stress for position, stress in speech.items() if position <= at})
    for position in range(at, at + 40, 5):
        assert cleared.pose(position) == pytest.approx(never.pose(position))


@given(SEEDS, SPEECH, st.integers(0, 200))
@settings(max_examples=40)
def test_what_is_forgotten_is_not_missed(seed: int, speech: dict[int, float], at: int) -> None:
    kept, forgetful = spoken(seed, dict(sorted(speech.items()))), spoken(seed, dict(sorted(speech.items())))
    for position in range(at + 1):
        forgetful.forget(position)
    for position in range(at, at + 40, 5):
        assert forgetful.pose(position) == pytest.approx(kept.pose(position))


def test_two_sessions_differ_and_one_is_the_same_again() -> None:
    one, again, other = (HeadMotion(seed_of(name), FPS) for name in ("a", "a", "b"))
    at = range(50, 500, 7)
    assert [one.pose(k) for k in at] == [again.pose(k) for k in at] != [other.pose(k) for k in at]
    assert [one.closure(k) for k in range(500)] != [other.closure(k) for k in range(500)]


@pytest.mark.parametrize("seed", range(8))
def test_the_head_goes_down_on_a_stressed_syllable_and_comes_back(seed: int) -> None:
    talk = dict.fromkeys(range(100, 200), 0.0)
    plain, stressed = spoken(seed, talk), spoken(seed, {**talk, 150: 1.0})
    nod = [np.degrees(stressed.pose(k).pitch - plain.pose(k).pitch) for k in range(140, 190)]
    assert nod[:11] == pytest.approx([0] * 11), "not before the syllable"
    assert 1.0 < max(nod) < 3.0 and 153 <= 140 + int(np.argmax(nod)) <= 157
    assert nod[30:] == pytest.approx([0] * 20)


def test_it_is_livelier_in_speech_than_in_pauses() -> None:
    def pace(talks: bool) -> float:
        speech = dict.fromkeys(range(100, 900), 0.0) if talks else {}
        steps = []
        for seed in range(6):
            motion = spoken(seed, speech)
            path = np.stack([head(motion.pose(k))[:3] for k in range(150, 900)])
            steps.append(np.abs(np.diff(path, axis=0)).mean())
        return float(np.mean(steps))

    assert 1.1 < pace(True) / pace(False) < 2.5


@given(SEEDS)
@settings(max_examples=30)
def test_eyes_blink_unevenly_ten_to_twenty_five_times_a_minute(seed: int) -> None:
    motion = HeadMotion(seed, FPS)
    closed = np.array([motion.closure(k) for k in range(FPS * 120)])
    begins = np.flatnonzero((closed[1:] >= 0.5) & (closed[:-1] < 0.5))
    assert 20 <= len(begins) <= 50
    assert closed[0] == 0 and closed.max() <= 1
    pauses = np.diff(begins) / FPS
    assert pauses.std() > 0.5 and pauses.min() > 1
    assert (closed > 0).mean() < 0.15


@given(SEEDS)
@settings(max_examples=30)
def test_the_gaze_comes_back_to_the_viewer(seed: int) -> None:
    motion = HeadMotion(seed, FPS)
    aside = []
    for k in range(FPS * 60):
        pose = motion.pose(k)
        aside.append(math.hypot(pose.gaze_x + 0.085 * pose.yaw, pose.gaze_y + 0.085 * pose.pitch))
    away = np.array(aside) > 0.001
    assert 0.02 < away.mean() < 0.4
    assert max(aside) < 0.012


@pytest.mark.parametrize("fps", [15, 30, 60])
def test_it_moves_at_the_same_pace_at_any_rate(fps: int) -> None:
    slow, quick = HeadMotion(5, 25), HeadMotion(5, fps)
    for second in range(40):
        assert quick.pose(second * fps)[:6] == pytest.approx(slow.pose(second * 25)[:6])


@pytest.mark.parametrize(("fps", "each"), [(15, 1), (25, 2), (30, 2), (60, 5)])
def test_a_live_head_at_rest_moves_in_fewer_steps_and_a_speaking_one_in_every_frame(fps: int, each: int) -> None:
    resting, speaking = HeadMotion(3, fps), HeadMotion(3, fps)
    for position in range(30 * fps):
        speaking.speak(position)
    poses = [resting.live_pose(position) for position in range(30 * fps)]
    calm = [pose for position, pose in enumerate(poses) if pose == resting.pose(position - position % each)]
    assert len(calm) >= 0.8 * len(poses)  # the others are glances
    assert all(pose == resting.pose(k) for k, pose in enumerate(poses) if pose not in calm)
    assert [speaking.live_pose(k) for k in range(fps, 5 * fps)] == [speaking.pose(k) for k in range(fps, 5 * fps)]


def test_nothing_is_asked_before_the_beginning() -> None:
    assert HeadMotion(1, 25).pose(0) == AS_IT_IS
