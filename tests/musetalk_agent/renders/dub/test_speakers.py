"""Who speaks: by lips and sound, by size, by number; mouths that are hidden, turned away or small are left alone."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from musetalk_agent.avatars.identity import PlainDescriber
from musetalk_agent.judge.lips import Heard
from musetalk_agent.measure.lip_measures import MouthTrack
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.renders.dub.footage_scan import FootageScan
from musetalk_agent.renders.dub.speakers import Chosen, choose, drawable, persons
from musetalk_agent.renders.film_parts import STUDIO_601, FilmClock

FPS = 25
STEP_S = 0.02
LIKE = PlainDescriber()


def syllables(seconds: float, seed: int) -> np.ndarray:
    """An opening that moves as a talker's does, 50 a second, 0 … 0.1."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.normal(size=round(seconds / STEP_S) + 12), np.hanning(13), "valid")
    return np.clip(0.03 + 0.03 * noise / noise.std(), 0, 0.1)


def heard(opening: np.ndarray, speech: np.ndarray | None = None) -> Heard:
    times = (np.arange(len(opening)) + 0.5) * STEP_S
    return Heard(MouthTrack(times, opening), np.ones(len(opening), bool) if speech is None else speech, 0.0)


def lips(opening: np.ndarray, frames: range) -> np.ndarray:
    """The mouth that says it, in these frames, as a tracker sees it."""
    middles = (np.array(frames) + 0.5) / FPS
    seen = np.interp(middles, (np.arange(len(opening)) + 0.5) * STEP_S, opening)
    return seen + np.random.default_rng(9).normal(0, 0.004, len(frames))


def still(frames: range) -> np.ndarray:
    return np.random.default_rng(8).normal(0.0, 0.003, len(frames))


def look(total: int, cuts: list[int], faces: list[tuple[range, np.ndarray, float]], **columns: Any) -> FootageScan:
    """Faces as frames, openings and width; each has a descriptor of its own unless `described` says otherwise."""
    rows = sorted((frame, number, k) for number, (frames, _, _) in enumerate(faces) for k, frame in enumerate(frames))
    count = len(rows)
    values: dict[str, Any] = {
        "aperture": np.array([faces[number][1][k] for _, number, k in rows], np.float32),
        "width": np.array([faces[number][2] for _, number, k in rows], np.float32),
        "turn": np.zeros(count, np.float32),
        "nod": np.zeros(count, np.float32),
        "evidence": np.full(count, np.nan, np.float32),
        "described": np.eye(len(faces), dtype=np.float32),
    }
    return FootageScan(
        clock=FilmClock.steady(FPS, total),
        start=Fraction(0),
        size=(640, 320),
        aspect=Fraction(1),
        colours=STUDIO_601,
        cuts=np.array(cuts, np.int64),
        frame=np.array([frame for frame, _, _ in rows], np.int64),
        number=np.array([number for _, number, _ in rows], np.int64),
        **{**values, **columns},
    )


def spoken_by(seen: FootageScan, chosen: Chosen) -> dict[int, list[int]]:
    return {
        number: seen.frame[chosen.speaks & (seen.number == number)].tolist() for number in range(len(seen.described))
    }


def test_two_who_take_turns_in_one_shot_are_distinguished() -> None:
    one, other = syllables(20, 1), syllables(20, 2)
    first = np.arange(1000) < 500
    sound = np.where(first, one, other)
    frames = range(500)
    mine = np.where(np.array(frames) < 250, lips(sound, frames), still(frames))
    theirs = np.where(np.array(frames) < 250, still(frames), lips(sound, frames))
    seen = look(500, [0], [(frames, mine, 120.0), (frames, theirs, 160.0)])
    found = spoken_by(seen, choose(seen, "auto", heard(sound), LIKE))
    right = len([k for k in found[0] if k < 250]) + len([k for k in found[1] if k >= 250])
    assert right / 500 > 0.9
    assert len(found[0]) + len(found[1]) == 500, "never both"


def test_who_listens_to_a_voice_from_elsewhere_is_left_alone() -> None:
    sound = syllables(8, 3)
    scenes = range(100), range(100, 200)
    seen = look(200, [0, 100], [(scenes[0], lips(sound, scenes[0]), 120.0), (scenes[1], still(scenes[1]), 120.0)])
    assert spoken_by(seen, choose(seen, "auto", heard(sound), LIKE)) == {0: list(scenes[0]), 1: []}
    moving = look(
        200,
        [0, 100],
        [(scenes[0], lips(sound, scenes[0]), 120.0), (scenes[1], lips(syllables(8, 4), scenes[1]), 120.0)],
    )
    assert spoken_by(moving, choose(moving, "auto", heard(sound), LIKE))[1] == [], "it says something else"


def test_footage_without_a_voice_goes_by_moving_lips_and_then_by_size() -> None:
    frames = range(100)
    seen = look(100, [0], [(frames, lips(syllables(4, 5), frames), 100.0), (frames, still(frames), 200.0)])
    silent = heard(np.zeros(200), np.zeros(200, bool))
    for sound in (None, silent):
        chosen = choose(seen, "auto", sound, LIKE)
        assert spoken_by(seen, chosen) == {0: list(frames), 1: []} and chosen.by == "auto"
    quiet = look(100, [0], [(frames, still(frames), 100.0), (frames, still(frames), 200.0)])
    chosen = choose(quiet, "auto", None, LIKE)
    assert spoken_by(quiet, chosen) == {0: [], 1: list(frames)} and chosen.by == "largest"


def test_the_largest_all_and_a_number() -> None:
    frames, later = range(50), range(50, 80)
    faces = [(frames, still(frames), 100.0), (frames, still(frames), 150.0), (later, still(later), 90.0)]
    same = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    seen = look(80, [0, 50], faces, described=same)
    assert persons(seen, LIKE).tolist() == [0, 1, 0]
    assert spoken_by(seen, choose(seen, "largest", None, LIKE)) == {0: [], 1: list(frames), 2: list(later)}
    assert spoken_by(seen, choose(seen, 0, None, LIKE)) == {0: list(frames), 1: [], 2: list(later)}
    assert choose(seen, "all", None, LIKE).speaks.all()
    with pytest.raises(ProblemError, match="the video shows 2") as caught:
        choose(seen, 2, None, LIKE)
    assert caught.value.code is ErrorCode.SPEAKER_NOT_FOUND and caught.value.limit == 1


def test_faces_that_are_seen_at_once_are_never_one_person() -> None:
    frames = range(10)
    twins = look(10, [0], [(frames, still(frames), 90.0)] * 2, described=np.ones((2, 1), np.float32))
    assert persons(twins, LIKE).tolist() == [0, 1]


def test_what_cannot_be_drawn_on_is_left_alone() -> None:
    frames = range(60)
    turn, evidence = np.zeros(60, np.float32), np.full(60, np.nan, np.float32)
    turn[10:20] = -1.0
    evidence[::4] = 200.0
    evidence[32:48:4] = 10.0
    seen = look(60, [0], [(frames, still(frames), 90.0)], turn=turn, evidence=evidence)
    shown = np.flatnonzero(drawable(seen)).tolist()
    assert not set(range(10, 20)) & set(shown) and not set(range(32, 45)) & set(shown)
    assert set(range(10)) <= set(shown) and set(range(50, 60)) <= set(shown)
    small = look(60, [0], [(frames, still(frames), 30.0)])
    with pytest.raises(ProblemError) as caught:
        choose(small, "all", None, LIKE)
    assert caught.value.code is ErrorCode.NO_FACE_IN_VIDEO
