"""What a report says of a clip: each warning at its bound, and only there."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.avatars.face_track import (
    FaceTrack,
    _listed,
    covered_frames,
    eased_mouths,
    filled,
    head_angles,
    head_reach,
)
from musetalk_agent.avatars.quality_report import closed_mouth, face_px, make_report
from musetalk_agent.protocol.http import AvatarReport
from tests.musetalk_agent.engines.warp.faces import demo_points, turned

Points = np.ndarray
CLIP = (640, 480)
POINTS = demo_points()


def sized(width: float, centre: tuple[float, float] = (320, 240), angle: float = 0.0) -> Points:
    """The mesh of the demo avatar, `width` pixels wide along its eye line, turned in the picture by `angle` degrees."""
    middle = (POINTS.min(0) + POINTS.max(0)) / 2
    along = POINTS[263] - POINTS[33]
    tilt = np.arctan2(along[1], along[0])
    across = (POINTS @ (along / np.linalg.norm(along))).astype(np.float64)
    scale = width / float(np.ptp(across))
    turn = np.radians(angle) - tilt
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray((POINTS - middle) * scale @ matrix.T + centre, np.float32)


def open_by(points: Points, gap: float) -> Points:
    """The mesh whose inner lips are `gap` outer eye distances apart in the middle."""
    out = points.copy()
    out[14] = out[13] + (0, gap * float(np.linalg.norm(points[33] - points[263])))
    return out


def track(points: Points, frames: int = 100, **more: object) -> FaceTrack:
    whole = np.repeat(points[None], frames, 0) if points.ndim == 2 else points
    return replace(FaceTrack(whole, [], 0.0), **more)  # type: ignore[arg-type]  # fields by name


def said(of: FaceTrack, still: bool = False, fps: int = 25, clip: tuple[int, int] = CLIP) -> AvatarReport:
    return make_report("a", of, clip, (320, 240), fps, still)


def codes(of: FaceTrack, still: bool = False, fps: int = 25, clip: tuple[int, int] = CLIP) -> list[str]:
    return [warning.code for warning in said(of, still, fps, clip).warnings]


GOOD = open_by(sized(200), 0.0)


def test_a_good_clip_has_no_warning() -> None:
    found = said(track(GOOD))
    assert found.warnings == [] and (found.frames, found.width, found.height, found.fps) == (100, 320, 240, 25)
    assert (found.face_px, found.motion_px, found.closed_mouth_frames, found.still) == (200, 0.0, 100, False)


@pytest.mark.parametrize(
    ("width", "sentence"), [(60, "only 60 px"), (64, "is 64 px"), (95, "is 95 px"), (96, None), (200, None)]
)
def test_a_small_face(width: int, sentence: str | None) -> None:
    found = {warning.code: warning.message for warning in said(track(open_by(sized(width), 0))).warnings}
    assert ("face_small" in found) == (sentence is not None)
    assert sentence is None or sentence in found["face_small"]


@given(st.floats(40, 300), st.floats(-180, 180))
def test_a_face_s_width_is_along_its_eyes_however_it_lies(width: float, angle: float) -> None:
    assert abs(face_px(sized(width, angle=angle)[None]) - width) <= 0.6


@pytest.mark.parametrize(
    ("angle", "lies"),
    [(0, False), (45, False), (49, False), (51, True), (90, True), (180, True), (-49, False), (-51, True)],
)
def test_a_lying_face(angle: float, lies: bool) -> None:
    assert ("face_lying" in codes(track(sized(200, angle=angle)))) is lies


@pytest.mark.parametrize(("turn", "profile"), [(0, False), (20, False), (70, True), (-70, True)])
def test_a_face_in_profile(turn: float, profile: bool) -> None:
    assert ("face_in_profile" in codes(track(turned(sized(200), turn, 0)))) is profile


@pytest.mark.parametrize(("share", "reported"), [(0.29, False), (0.3, True), (1.0, True)])
def test_several_faces(share: float, reported: bool) -> None:
    assert ("several_faces" in codes(track(GOOD, several=share))) is reported


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize(("room", "reported"), [(6, False), (2, True), (-20, True)])
def test_a_face_at_the_edge(side: str, room: int, reported: bool) -> None:
    """The margin is 2 % of the face's width: four pixels here."""
    low, high = GOOD.min(0), GOOD.max(0)
    axis = 0 if side in ("left", "right") else 1
    shift = np.zeros(2, np.float32)
    shift[axis] = room - low[axis] if side in ("left", "top") else CLIP[axis] - 1 - room - high[axis]
    assert ("face_at_edge" in codes(track(GOOD + shift))) is reported


@pytest.mark.parametrize(("frames", "still", "reported"), [(24, False, True), (25, False, False), (1, True, False)])
def test_a_short_clip(frames: int, still: bool, reported: bool) -> None:
    assert ("clip_short" in codes(track(GOOD, frames), still)) is reported


@pytest.mark.parametrize(("gap", "closed"), [(0.0, True), (0.029, True), (0.031, False), (0.2, False)])
def test_lips_are_closed_below_a_share_of_the_eyes_distance(gap: float, closed: bool) -> None:
    points = open_by(sized(200), gap)
    assert closed_mouth(points[None]).tolist() == [closed]
    assert ("mouth_open" in codes(track(points))) is not closed


@pytest.mark.parametrize("still", [True, False])
def test_one_closed_frame_is_enough_and_a_still_is_called_a_picture(still: bool) -> None:
    talking = np.repeat(open_by(sized(200), 0.2)[None], 50, 0)
    (warning,) = said(track(talking), still).warnings
    assert warning.code == "mouth_open" and ("picture" in warning.message) is still
    talking[7] = GOOD
    found = said(track(talking), still)
    assert found.warnings == [] and found.closed_mouth_frames == 1


def test_frames_that_show_no_mouth_say_nothing_of_it() -> None:
    points = np.repeat(open_by(sized(200), 0.2)[None], 50, 0)
    points[10:12] = GOOD
    found = said(track(points, missing=[10], covered=[11]))
    assert found.closed_mouth_frames == 0 and {w.code for w in found.warnings} >= {"mouth_open"}
    assert (found.frames_without_face, found.frames_mouth_hidden) == ([10], [11])


@pytest.mark.parametrize(
    ("missing", "covered", "words"),
    [
        ([0, 1], [], {"frames_without_face": "2 of 50 frames show no face"}),
        ([], [4], {"mouth_hidden": "covered in 1 of 50 frames"}),
        (list(range(25)), list(range(25, 50)), {"mouth_hidden": "it will not be seen to speak"}),
    ],
)
def test_frames_without_a_mouth_are_counted(missing: list[int], covered: list[int], words: dict[str, str]) -> None:
    found = {w.code: w.message for w in said(track(GOOD, 50, missing=missing, covered=covered)).warnings}
    assert all(sentence in found[code] for code, sentence in words.items())


@pytest.mark.parametrize(
    ("cuts", "named"),
    [
        ((12,), "at frame 12;"),
        ((12, 40), "at frame 12 and 40;"),
        ((1, 2, 3, 4, 5), "at frame 1, 2, 3, 4 and 5;"),
        ((1, 2, 3, 4, 5, 6), "at frame 1, 2, 3, 4, 5 … (6 changes);"),
    ],
)
def test_cuts_are_named_up_to_five(cuts: tuple[int, ...], named: str) -> None:
    (warning,) = said(track(GOOD, 50, cuts=cuts, start=3, total=80)).warnings
    assert warning.code == "scene_cut" and named in warning.message and "frames 3 to 52 are used" in warning.message


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_the_mouth_comes_and_goes_over_four_frames(bare: list[bool]) -> None:
    """As far as the nearest bare frame, by four: 0 on it, 1 from the fourth frame away from it."""
    found = eased_mouths(np.array(bare))
    places = [k for k, one in enumerate(bare) if one]
    for k, share in enumerate(found.tolist()):
        assert share == min([1.0, *(abs(k - place) / 4 for place in places)])
    assert all(abs(a - b) <= 0.25 for a, b in pairwise(found.tolist()))


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(31, 40))
def test_points_between_two_seen_frames_go_along_the_straight_line(seen: set[int], total: int) -> None:
    frames = np.array(sorted(seen), np.int64)
    known = np.random.default_rng(0).random((len(frames), 4, 2)).astype(np.float32)
    made = filled(known, frames, total)
    assert np.array_equal(made[frames], known)
    for axis in range(2):
        line = np.interp(np.arange(total), frames, known[:, 0, axis])
        assert made[:, 0, axis] == pytest.approx(line, abs=1e-5)


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1, 2, 3], "0–3"),
        ([0, 1, 2, 7, 9, 10], "0–2, 7, 9–10"),
        (list(range(0, 24, 2)), "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22"),
        (list(range(0, 26, 2)), "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22 …"),
    ],
)
def test_frames_are_listed_as_ranges(frames: list[int], text: str) -> None:
    assert _listed(frames) == text


@given(st.dictionaries(st.integers(0, 59), st.floats(0, 300), max_size=16))
def test_a_mouth_is_covered_only_where_two_looks_agree_or_one_is_all_there_is(looked: dict[int, float]) -> None:
    found = covered_frames(60, looked, np.zeros((60, 2), np.float32))
    evidence = [looked[frame] for frame in sorted(looked)]
    if not looked or min(evidence) >= 120:
        assert not found.any(), "above that evidence no mouth is covered"
    if len(looked) == 1:
        assert found.all() == (evidence[0] < 50) and len(set(found.tolist())) == 1
    if evidence and max(evidence) < 50:
        assert found.all()


@given(st.floats(-40, 40), st.floats(-25, 25), st.floats(60, 300), st.tuples(st.floats(0, 500), st.floats(0, 500)))
def test_a_head_s_angles_do_not_depend_on_its_size_or_place(
    turn: float, nod: float, width: float, centre: tuple[float, float]
) -> None:
    here = head_angles(turned(sized(200), turn, nod)[None])[0]
    there = head_angles(turned(sized(width, centre), turn, nod)[None])[0]
    assert np.abs(here - there).max() < 0.01


def test_a_head_that_turns_further_has_a_larger_angle_of_that_sign() -> None:
    turns = np.stack([turned(sized(200), angle, 0) for angle in range(-40, 41, 10)])
    nods = np.stack([turned(sized(200), 0, angle) for angle in range(-25, 26, 5)])
    assert (np.diff(head_angles(turns)[:, 0]) > 0).all() and (np.diff(head_angles(nods)[:, 1]) > 0).all()
    assert abs(np.degrees(head_angles(turns)[4, 0])) < 5, "a face from the front"


def test_a_few_frames_at_the_ends_do_not_count_for_the_reach() -> None:
    still = np.repeat(sized(200)[None], 200, 0)
    jerk = still.copy()
    jerk[:2], jerk[-2:] = turned(sized(200), 40, 0), turned(sized(200), -40, 0)
    assert head_reach(jerk) == pytest.approx(head_reach(still), abs=0.01)
    long = np.stack([turned(sized(200), 40 if k < 20 else 0, 0) for k in range(200)])
    assert head_reach(long)[0] > head_reach(still)[0] + 0.5
