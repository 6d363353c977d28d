"""Trembling goes, movement stays: faces of a painted network, whose mouth is known."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest

from musetalk_agent.engines.musetalk.picture.smoothing import STRENGTHS, FaceSmoother
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.avatar_settings import Smoothing
from tests.fakes.painted_mouth import SIDE, Faults, Painter, Speech, lag_frames, opening_of, speech, trembling

TOP = 112
MOUTH = (128.0, 180.0, 40.0)
SKIN = (150, 175, 215)
DIM_SKIN = (80, 92, 120)
Talk = tuple[Speech, list[Pixels], np.ndarray]
"""What is said, its faces, and how far each mouth is open."""


def flat(skin: tuple[int, int, int] = SKIN) -> Pixels:
    """A face of one colour."""
    return np.full((SIDE, SIDE, 3), skin, np.uint8)


def painted(spoken: Speech, faults: Faults | None = None, skin: tuple[int, int, int] = SKIN) -> list[Pixels]:
    painter = Painter(faults or Faults())
    return [painter.face(flat(skin), MOUTH, opening)[TOP:] for opening in spoken.openings]


def openings(faces: list[Pixels]) -> np.ndarray:
    return np.array([opening_of(face, (MOUTH[0], MOUTH[1] - TOP), 22) for face in faces])


def shown(faces: list[Pixels], name: Smoothing) -> list[Pixels]:
    strength = STRENGTHS[name]
    assert strength is not None
    smoother = FaceSmoother(strength)
    return [smoother.smoothed(face).copy() for face in faces]


@functools.cache
def shown_openings(name: Smoothing, seed: int = 0, hold: tuple[int, int] = (3, 9)) -> np.ndarray:
    """How far the mouths of a `talk` are open once they are smoothed."""
    return openings(shown(talk(seed, hold)[1], name))


@functools.lru_cache(2)
def talk(seed: int = 0, hold: tuple[int, int] = (3, 9), skin: tuple[int, int, int] = SKIN) -> Talk:
    """Ten seconds of speech, painted once for both strengths."""
    spoken = speech(250, seed, hold)
    before = painted(spoken, skin=skin)
    return spoken, before, openings(before)


@pytest.mark.parametrize("name", ["light", "strong"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("hold", [(3, 5), (3, 9)], ids=["fast", "usual"])
def test_trembling_is_halved_and_nothing_comes_later(name: Smoothing, seed: int, hold: tuple[int, int]) -> None:
    spoken, _, raw = talk(seed, hold)
    smooth = shown_openings(name, seed, hold)
    assert abs(40 * lag_frames(smooth, raw)) < 1  # ms at 25 frames a second
    closed = [k for k, closure in enumerate(spoken.closures) if raw[closure.start : closure.stop].min() < 2]
    kept = [smooth[spoken.closures[k].start : spoken.closures[k].stop].min() < 2 for k in closed]
    assert len(kept) > 10 and np.mean(kept) >= 0.95
    if hold[1] > 5:
        assert trembling(smooth, spoken.holds) < trembling(raw, spoken.holds) / 2


@pytest.mark.parametrize("name", ["light", "strong"])
def test_lips_that_are_distinguished_from_the_skin_by_their_red_alone_tremble_as_little(name: Smoothing) -> None:
    """As those of a talker of GRID: an edge that trembles there is no movement, however little the green changes."""
    spoken, before, raw = talk(skin=DIM_SKIN)
    smooth = openings(shown(before, name))
    assert trembling(smooth, spoken.holds) < 0.4 * trembling(raw, spoken.holds)


def test_strong_takes_out_more_than_light() -> None:
    spoken = speech(250, 0, (3, 9))
    light, strong = (trembling(shown_openings(name, 0, (3, 9)), spoken.holds) for name in STRENGTHS if STRENGTHS[name])
    assert strong < 0.95 * light


def test_noise_of_a_face_that_stands_still_is_averaged() -> None:
    before = painted(Speech(np.full(60, 12.0), [], []), Faults(trembling=0))
    after = shown(before, "light")
    skin = (slice(0, 20), slice(0, 60))

    def flicker(faces: list[Pixels]) -> float:
        return float(np.mean([np.abs(a[skin].astype(float) - b[skin]).mean() for a, b in pairwise(faces[20:])]))

    assert flicker(after) < 0.45 * flicker(before)


def test_a_mouth_that_shuts_at_once_is_shut_at_once() -> None:
    spoken = Speech(np.array([20.0] * 10 + [0.0] * 2 + [20.0] * 10), [], [])
    faces = painted(spoken, Faults(trembling=0, noise=0))
    seen = openings(shown(faces, "strong"))
    assert seen[9] > 18 and seen[10] < 1 and seen[11] < 1 and seen[12] > 15


def test_a_slow_movement_is_not_held_back_for_long() -> None:
    """Half a pixel a frame looks like trembling at first; what adds up is let through."""
    spoken = Speech(np.concatenate([np.full(5, 6.0), np.arange(6, 22, 0.5), np.full(10, 22.0)]), [], [])
    faces = painted(spoken, Faults(trembling=0, noise=0))
    seen, raw = openings(shown(faces, "strong")), openings(faces)
    assert np.abs(seen - raw).max() < 3 and abs(seen[-1] - raw[-1]) < 0.3


def test_the_first_face_and_the_first_after_a_reset_are_taken_as_they_are() -> None:
    faces = painted(speech(6))
    strength = STRENGTHS["strong"]
    assert strength is not None
    smoother = FaceSmoother(strength)
    assert np.array_equal(smoother.smoothed(faces[0]), faces[0])
    assert not np.array_equal(smoother.smoothed(faces[1]), faces[1])
    smoother.reset()
    assert np.array_equal(smoother.smoothed(faces[2]), faces[2])


@pytest.mark.parametrize("step", [(0.6, -0.4), (-2.3, 1.2)], ids=["less than a pixel", "more"])
def test_what_is_shown_follows_the_head(step: tuple[float, float]) -> None:
    """A mouth that trembles in the same way where the head stands still, and where it moves across the picture."""
    strength = STRENGTHS["light"]
    assert strength is not None
    spoken = Speech(np.full(16, 12.0), [range(16)], [])
    still, walking, smoother = Painter(), Painter(), FaceSmoother(strength)
    at_rest = shown([still.face(flat(), MOUTH, opening)[TOP:] for opening in spoken.openings], "light")
    for frame, opening in enumerate(spoken.openings):
        x, y = (at + frame * by for at, by in zip(MOUTH, step, strict=False))
        if frame:
            smoother.follow(*step)
        seen = smoother.smoothed(walking.face(flat(), (x, y, MOUTH[2]), opening)[TOP:])
        expected = opening_of(at_rest[frame], (MOUTH[0], MOUTH[1] - TOP), 18)
        assert opening_of(seen, (x, y - TOP), 18) == pytest.approx(expected, abs=0.6), frame


def test_what_is_given_is_not_changed() -> None:
    faces = painted(speech(5))
    copies = [face.copy() for face in faces]
    shown(faces, "light")
    assert all(np.array_equal(a, b) for a, b in zip(faces, copies, strict=True))
