"""Face boxes, crops and what a clip's lips do: what holds for any face, wherever it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_agent.engines.musetalk.face_region import (
    JAW,
    JAW_REACH,
    LYING,
    MARGIN,
    _whole,
    _with_neighbours,
    crop_box,
    face_boxes,
    jaw_lines,
    talks,
    upright,
)
from musetalk_agent.errors import NoFaceInAvatar
from tests.musetalk_agent.engines.warp.faces import demo_points

POINTS = demo_points()
WIDTH, HEIGHT = 640, 480


def placed(x: float, y: float, scale: float = 1.0) -> NDArray[np.float32]:
    """The demo avatar's mesh, 300 pixels wide by `scale`, its middle at (x, y): `[1, 468, 2]`."""
    middle = (POINTS.min(0) + POINTS.max(0)) / 2
    return np.asarray(((POINTS - middle) * (300 * scale / np.ptp(POINTS[:, 0])) + (x, y))[None], np.float32)


PLACES = st.tuples(st.floats(-200, 840), st.floats(-200, 680), st.floats(0.2, 1.5))


@settings(max_examples=60)
@given(st.lists(PLACES, min_size=1, max_size=5), st.integers(-9, 9))
def test_boxes_lie_in_the_picture_whatever_the_face_does(places: list[tuple[float, float, float]], shift: int) -> None:
    landmarks = np.concatenate([placed(*place) for place in places])
    try:
        boxes = face_boxes(landmarks, WIDTH, HEIGHT, shift)
    except NoFaceInAvatar:
        assert not any(40 < x < 600 and 40 < y < 440 for x, y, _ in places), "a face in the picture has a box"
        return
    assert boxes.shape == (len(places), 4) and boxes.dtype == np.int32
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (WIDTH, HEIGHT)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@given(st.floats(250, 390), st.floats(200, 280), st.floats(0.3, 0.9))
def test_a_box_holds_the_jaw_and_ends_below_the_chin(x: float, y: float, scale: float) -> None:
    landmarks = placed(x, y, scale)
    x1, y1, x2, y2 = face_boxes(landmarks, WIDTH, HEIGHT)[0].tolist()
    jaw = jaw_lines(landmarks)[0]
    assert (x1, x2) == (int(jaw[:, 0].min()), int(jaw[:, 0].max()))
    assert y2 == int(jaw[:, 1].max()) + MARGIN and y1 < jaw[:, 1].min() + 1


@given(st.floats(-0.4, 0.4), st.integers(2, 12))
def test_a_face_that_trembles_less_than_half_a_pixel_has_a_box_that_stands_still(tremble: float, count: int) -> None:
    still = np.repeat(np.floor(placed(320, 240)) + 0.5, count, 0)
    still[1::2] += np.float32(tremble)
    assert len(np.unique(face_boxes(still.astype(np.float32), WIDTH, HEIGHT), axis=0)) == 1


@given(st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=40))
def test_a_whole_track_is_never_more_than_half_a_pixel_beyond_its_pixel(values: list[float]) -> None:
    track = np.array(values, np.float32)
    whole = _whole(track)
    away = track - whole
    assert whole[0] == int(values[0]) and whole.dtype == np.int32
    assert ((away >= -1) & (away < 1.5)).all()
    for before, here, value in zip(whole, whole[1:], track[1:], strict=False):
        assert here == before or here == int(value)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_a_frame_without_a_box_has_that_of_the_nearest_with_one(there: list[bool]) -> None:
    boxes = np.array([[k, 0, k + 5, 5] if one else [9, 9, 9, 9] for k, one in enumerate(there)], np.int32)
    if not any(there):
        with pytest.raises(NoFaceInAvatar, match="every frame"):
            _with_neighbours(boxes)
        return
    filled = _with_neighbours(boxes)
    for k, (x1, *_) in enumerate(filled.tolist()):
        assert there[x1] and abs(x1 - k) == min(abs(n - k) for n, one in enumerate(there) if one)


@given(st.tuples(st.integers(0, 500), st.integers(0, 400)), st.integers(1, 300), st.integers(1, 300))
def test_the_crop_is_a_square_around_the_box_s_middle_that_holds_it(
    corner: tuple[int, int], width: int, height: int
) -> None:
    x1, y1 = corner
    left, top, right, bottom = crop_box((x1, y1, x1 + width, y1 + height))
    side = right - left
    assert side == bottom - top
    assert abs(side - 1.5 * max(width, height)) <= 4
    assert abs((left + right) / 2 - (2 * x1 + width) / 2) <= 0.5
    assert abs((top + bottom) / 2 - (2 * y1 + height) / 2) <= 0.5
    if max(width, height) >= 8:
        assert left <= x1 and top <= y1 and right >= x1 + width and bottom >= y1 + height


def test_the_jaw_is_lowered_by_a_share_of_its_distance_from_the_eyes_and_never_raised() -> None:
    landmarks = placed(320, 240)
    plain, drawn = landmarks[:, JAW, :], jaw_lines(landmarks)
    assert np.array_equal(drawn[..., 0], plain[..., 0])
    down = plain[..., 1] - landmarks[:, 168, 1, None]
    assert drawn[..., 1] == pytest.approx(plain[..., 1] + JAW_REACH * np.maximum(down, 0), abs=1e-3)
    assert (drawn[..., 1] >= plain[..., 1]).all()
    assert np.array_equal(placed(320, 240), landmarks), "the mesh itself is left alone"


def lips(gaps: list[float], scale: float = 1.0) -> NDArray[np.float32]:
    """A clip whose inner lips are these outer eye distances apart."""
    clip = np.repeat(placed(320, 240, scale), len(gaps), 0)
    eyes = np.linalg.norm(clip[0, 33] - clip[0, 263])
    clip[:, 14] = clip[:, 13]
    clip[:, 14, 1] += np.array(gaps, np.float32) * eyes
    return clip


@given(st.lists(st.floats(0, 0.2), min_size=5, max_size=30), st.floats(0.1, 3))
def test_whether_a_clip_talks_does_not_depend_on_its_size(gaps: list[float], scale: float) -> None:
    low, middle, high = np.percentile(gaps, (10, 50, 90))
    if min(abs(middle - 0.02), abs(high - low - 0.012)) > 1e-3:
        assert talks(lips(gaps, scale)) == bool(middle > 0.02 or high - low > 0.012)


@pytest.mark.parametrize("angle", [-180, -90, -46, -44, 0, 44, 46, 90, 135])
def test_a_face_stands_within_an_eighth_of_a_turn(angle: float) -> None:
    landmarks = np.zeros((1, 468, 2), np.float32)
    landmarks[0, 263] = 100 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    assert upright(landmarks).tolist() == [abs(np.radians(angle)) < LYING]
