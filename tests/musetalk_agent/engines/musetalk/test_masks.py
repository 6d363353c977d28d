"""Masks: upstream's recipe to the bit, and the one from the mesh where it should be."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_agent.engines.musetalk.face_region import (
    blend_mask,
    crop_box,
    face_boxes,
    middle,
    region_of_classes,
    region_of_mesh,
)
from tests.musetalk_agent.engines.musetalk.faces import moved
from tests.musetalk_agent.engines.warp.faces import demo_points
from tests.reference import musetalk as reference

Box = tuple[int, int, int, int]


def parsed_face(rng: np.random.Generator) -> np.ndarray:
    """A class map with a skin oval, a nose, lips, hair and neck, and holes in it."""
    classes = np.zeros((512, 512), np.uint8)
    shift = rng.integers(-20, 20, 2)
    for centre, axes, value in (
        ((256, 420), (100, 120), 14),
        ((256, 250), (190, 200), 17),
        ((256, 270), (140, 170), 1),
        ((256, 280), (30, 50), 10),
        ((256, 350), (50, 24), 12),
        ((256, 356), (40, 10), 11),
        ((256, 368), (44, 12), 13),
    ):
        cv2.ellipse(classes, (centre[0] + int(shift[0]), centre[1] + int(shift[1])), axes, 0, 0, 360, value, -1)
    holes = rng.random((512, 512)) < 0.002
    classes[holes] = rng.integers(0, 19, int(holes.sum()))
    return classes


BOXES: list[Box] = [(100, 180, 310, 430), (0, 0, 97, 120), (3, 5, 404, 305), (700, 300, 1012, 719), (11, 8, 75, 60)]


@pytest.mark.parametrize("box", BOXES)
def test_a_mask_from_classes_is_upstreams_to_the_bit(box: Box) -> None:
    x1, y1, x2, y2 = box
    (xs, ys, _, _), _ = reference.crop_box(box)
    rng = np.random.default_rng(x2)
    for classes in (parsed_face(rng), rng.integers(0, 19, (512, 512), np.uint8), np.ones((512, 512), np.uint8)):
        theirs = reference.mask_in_crop(reference.jaw_region(classes), box)
        ours = blend_mask(region_of_classes(classes, box), box)
        assert np.array_equal(ours, theirs[y1 - ys : y2 - ys, x1 - xs : x2 - xs])


def test_a_mask_from_the_mesh_is_treated_as_upstream_treats_a_parsed_one() -> None:
    points = demo_points()
    x1, y1, x2, y2 = box = tuple(int(v) for v in face_boxes(points[None], 640, 640)[0])
    region = region_of_mesh(points, box)
    (xs, ys, xe, ye), _ = reference.crop_box(box)
    whole = np.zeros((ye - ys, xe - xs), np.uint8)
    whole[middle(box) - ys : y2 - ys, x1 - xs : x2 - xs] = region
    assert np.array_equal(blend_mask(region, box), reference.soften(whole)[y1 - ys : y2 - ys, x1 - xs : x2 - xs])


def test_the_mesh_masks_lips_and_chin_but_not_nose_neck_or_what_lies_beside_the_face() -> None:
    points = demo_points()
    x1, y1, *_ = box = tuple(int(v) for v in face_boxes(points[None], 640, 640)[0])
    mask = blend_mask(region_of_mesh(points, box), box)

    def at(index: int, dy: float = 0.0) -> int:
        x, y = points[index]
        return int(mask[round(float(y) + dy) - y1, round(float(x)) - x1])

    lips = [0, 13, 14, 17, 61, 291, 37, 267, 84, 314]
    assert min(at(index) for index in lips) >= 250
    assert at(152, -20) == 255 and at(199) == 255  # the chin
    assert 60 < at(152) < 255  # its edge, soft
    assert at(4, -5) < 30 and at(1) < 60  # the tip of the nose
    assert at(33) == 0 and at(168) == 0  # eyes and bridge
    assert mask[: middle(box) - y1 - 30].max() == 0
    assert mask[:, :4].max() < 20 and mask[:, -4:].max() < 20  # the sides of the box
    assert mask[-1, 0] == mask[-1, -1] == 0


def test_a_mesh_that_trembles_moves_the_mask_no_more_than_it_trembles() -> None:
    points = demo_points()
    box = tuple(int(v) for v in face_boxes(points[None], 640, 640)[0])
    still = region_of_mesh(points, box)
    rng = np.random.default_rng(3)
    worst = 0.0
    for _ in range(20):
        trembling = points + rng.normal(0, 0.2, points.shape).astype(np.float32)
        change = np.abs(blend_mask(region_of_mesh(trembling, box), box).astype(int) - blend_mask(still, box))
        worst = max(worst, float(change.max()))
    assert 0 < worst <= 15  # a pixel of the soft edge is 14


def test_a_face_at_the_pictures_edge_has_a_mask_of_its_boxs_size() -> None:
    for x, y in ((-230, 0), (250, 0), (0, 260)):
        _, points = moved(x, y, 1.0, (640, 640))
        x1, y1, x2, y2 = box = tuple(int(v) for v in face_boxes(points[None], 640, 640)[0])
        assert blend_mask(region_of_mesh(points, box), box).shape == (y2 - y1, x2 - x1)
    assert crop_box(box)[3] > 640
