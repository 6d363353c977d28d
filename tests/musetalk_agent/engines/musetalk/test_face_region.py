"""Face boxes and crop boxes."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.engines.musetalk.face_region import BRIDGE, JAW, JAW_REACH, crop_box, face_boxes, talks
from musetalk_agent.errors import NoFaceInAvatar
from tests.musetalk_agent.engines.warp.faces import demo_points
from tests.reference import musetalk as reference


def mesh(left: float, right: float, bridge: float, chin: float) -> np.ndarray:
    """A mesh of which only what the box reads is anywhere: temples, the bridge's third point, chin."""
    points = np.full((468, 2), ((left + right) / 2, bridge), np.float32)
    points[list(JAW), 0] = np.linspace(left, right, len(JAW))
    points[JAW[len(JAW) // 2], 1] = chin
    return points


def box(points: np.ndarray, width: int = 1280, height: int = 720, shift: int = 0) -> tuple[int, ...]:
    return tuple(int(v) for v in face_boxes(points[None], width, height, shift)[0])


def test_the_box_is_symmetric_about_the_bridge_and_ends_ten_pixels_below_the_chin() -> None:
    # By hand: bridge 300, the mesh's chin 420, the visible one 420 + 0.035 · 120 = 424.2 → 424; 124 up to 176; 424 + 10 down.
    assert box(mesh(100, 310, 300, 420)) == (100, 176, 310, 434)


def test_points_are_cut_to_whole_pixels_first() -> None:
    # By hand: 300.9 → 300, 420.6 + 4.1895 → 424, 100.9 → 100, 310.2 → 310.
    assert box(mesh(100.9, 310.2, 300.9, 420.6)) == (100, 176, 310, 434)


def test_a_shift_moves_the_middle_and_so_the_top_twice_as_far() -> None:
    assert box(mesh(100, 310, 300, 420), shift=5) == (100, 186, 310, 434)
    assert box(mesh(100, 310, 300, 420), shift=-5) == (100, 166, 310, 434)


def test_boxes_end_at_the_picture() -> None:
    assert box(mesh(-8, 310, 100, 420)) == (0, 0, 310, 441)  # the top would be at -231
    assert box(mesh(1100, 1290, 500, 715)) == (1100, 278, 1280, 720)


def test_a_box_equals_upstreams_on_the_same_68_points() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        left, bridge = rng.uniform(0, 400, 2)
        points = mesh(left, left + rng.uniform(40, 400), bridge, bridge + rng.uniform(30, 300))
        face68 = np.zeros((68, 2), np.int32)
        face68[:] = points[BRIDGE[0]].astype(np.int32)
        jaw = points[list(JAW)][np.linspace(0, len(JAW) - 1, 17).round().astype(int)]
        jaw[:, 1] += np.float32(JAW_REACH) * (jaw[:, 1] - bridge)
        face68[:17] = jaw.astype(np.int32)
        shift = int(rng.integers(-9, 10))
        assert box(points, 1280, 720, shift) == reference.face_box(face68, 720, shift)


def test_the_box_of_a_resting_face_stands_still_and_that_of_a_moving_one_follows() -> None:
    rng = np.random.default_rng(3)
    resting = np.stack([mesh(100.9, 310.9, 300.9, 420.9) + np.float32(v) for v in rng.uniform(-0.4, 0.4, 50)])
    assert len(np.unique(face_boxes(resting, 1280, 720), axis=0)) == 1
    moving = np.stack([mesh(100, 310, 300, 420) + np.float32(0.2 * k) for k in range(100)])
    alone = np.stack([box(points) for points in moving])
    assert np.abs(face_boxes(moving, 1280, 720) - alone)[:, [0, 2, 3]].max() == 1
    assert np.abs(face_boxes(moving, 1280, 720) - alone)[:, 1].max() <= 2  # twice the middle less the chin


def test_a_face_outside_the_picture_takes_the_nearest_frames_box() -> None:
    inside, later = mesh(100, 310, 300, 420), mesh(200, 410, 300, 420)
    outside = mesh(-300, -100, 300, 420)
    boxes = face_boxes(np.stack([outside, inside, outside, outside, later]), 1280, 720)
    assert boxes[:, 0].tolist() == [100, 100, 100, 200, 200]
    with pytest.raises(NoFaceInAvatar):
        face_boxes(outside[None], 1280, 720)


def test_the_crop_is_a_square_of_one_and_a_half_times_the_longer_side() -> None:
    # By hand: 210 × 250 around (205, 305): 250 // 2 · 1.5 = 187.5 → 187.
    assert crop_box((100, 180, 310, 430)) == (18, 118, 392, 492)
    rng = np.random.default_rng(2)
    for _ in range(200):
        x, y, w, h = (int(v) for v in rng.integers(1, 400, 4))
        assert crop_box((x, y, x + w, y + h)) == reference.crop_box((x, y, x + w, y + h))[0]


def test_the_demo_avatars_box_holds_its_face_from_the_brows_to_the_chin() -> None:
    points = demo_points()
    x1, y1, x2, y2 = box(points, 640, 640)
    brows, lips, nose = points[[105, 334], 1].mean(), points[[0, 17], 1], points[4, 1]
    assert x1 < points[:, 0].min() + 4 and x2 > points[:, 0].max() - 4
    assert y1 < brows and y2 - 20 < points[152, 1] < y2 - 10
    assert nose - 30 < (y1 + y2) / 2 < nose  # the lower half begins just above the tip of the nose
    assert (lips > (y1 + y2) / 2 + 20).all()


@pytest.mark.parametrize(
    ("gaps", "talking"),
    [
        ([0.0] * 20, False),
        ([0.012] * 20, False),
        ([0.03] * 20, True),  # hangs open
        ([0.0] * 14 + [0.03, 0.06] * 3, True),  # says something now and then
        ([0.004, 0.008] * 10, False),  # what the mesh sees of lips that rest
        ([0.0] * 19 + [0.05], False),  # one frame is no talk
    ],
)
def test_a_clip_talks_whose_lips_are_apart_or_open_and_close(gaps: list[float], talking: bool) -> None:
    landmarks = np.zeros((len(gaps), 468, 2), np.float32)
    landmarks[:, 263] = 100.0, 0.0
    landmarks[:, 14, 1] = 100 * np.array(gaps)
    assert talks(landmarks) is talking
