"""Resizing and blend masks: to the bit as Pillow does it, and what holds for any box and any region."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from musetalk_agent.engines.musetalk.face_region import (
    Filter,
    _bar,
    _house,
    _jaw,
    blend_mask,
    crop_box,
    middle,
    region_of_classes,
    region_of_mesh,
    resize,
)
from musetalk_agent.media_types import Pixels
from tests.musetalk_agent.engines.warp.faces import demo_points

KINDS: dict[Filter, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
KIND = st.sampled_from(sorted(KINDS))
SKIN, NOSE, MOUTH = 1, 10, 11


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), KIND, st.booleans(), st.integers(0, 9))
def test_any_square_is_resized_as_pillow_resizes_it(
    source: int, side: int, kind: Filter, coloured: bool, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(
        0, 256, (source, source, 3) if coloured else (source, source), np.uint8
    )
    pillow = np.asarray(Image.fromarray(picture).resize((side, side), KINDS[kind]))
    assert np.array_equal(resize(picture, side, kind), pillow)


@given(st.integers(1, 80), st.integers(1, 80), KIND, st.integers(0, 255))
def test_a_flat_picture_stays_flat(source: int, side: int, kind: Filter, value: int) -> None:
    assert (resize(np.full((source, source), value, np.uint8), side, kind) == value).all()


BOXES = st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(8, 90),
    st.integers(8, 90),
)
FaceBox = tuple[int, int, int, int]


def region(box: FaceBox, seed: int, share: float = 0.5) -> Pixels:
    """Random pixels, 0 or 255, over the lower part of a face box."""
    shape = box[3] - middle(box), box[2] - box[0]
    return np.where(np.random.default_rng(seed).random(shape) < share, 255, 0).astype(np.uint8)


@settings(max_examples=60)
@given(BOXES, st.integers(0, 9))
def test_a_mask_has_its_box_s_size_and_fades_out_above_the_middle(box: FaceBox, seed: int) -> None:
    mask = blend_mask(region(box, seed), box)
    assert mask.shape == (box[3] - box[1], box[2] - box[0]) and mask.dtype == np.uint8
    left, _, right, _ = crop_box(box)
    reach = int(0.1 * (right - left) // 2 * 2) // 2
    above = max(0, middle(box) - box[1] - reach)
    assert not mask[:above].any()


@settings(max_examples=40)
@given(BOXES, st.integers(0, 9))
def test_a_mask_is_mirrored_with_its_region_and_grows_with_it(box: FaceBox, seed: int) -> None:
    small = region(box, seed, 0.3)
    large = np.maximum(small, region(box, seed + 100, 0.3))
    mask = blend_mask(small, box)
    assert np.abs(blend_mask(np.ascontiguousarray(small[:, ::-1]), box)[:, ::-1].astype(int) - mask).max() <= 1
    assert (blend_mask(large, box) >= mask).all()


@pytest.mark.parametrize("box", [(10, 10, 74, 74), (0, 0, 40, 90), (5, 7, 96, 60)])
def test_nothing_has_no_mask_and_a_whole_region_is_full_in_its_middle(box: FaceBox) -> None:
    shape = box[3] - middle(box), box[2] - box[0]
    assert not blend_mask(np.zeros(shape, np.uint8), box).any()
    full = blend_mask(np.full(shape, 255, np.uint8), box)
    row, column = (middle(box) + box[3]) // 2 - box[1], shape[1] // 2
    assert full[row, column] == full.max() >= 254
    assert full[-1, column] < 255 > full[row, 0], "softened at the box's edge, outside which is nothing"


POINTS = demo_points()


def mesh(box: FaceBox) -> np.ndarray:
    """The demo avatar's mesh in a face box."""
    low, high = POINTS.min(0), POINTS.max(0)
    return np.asarray((POINTS - low) / (high - low) * (box[2] - box[0], box[3] - box[1]) + box[:2], np.float32)


@given(st.builds(lambda x, y, side: (x, y, x + side, y + side), *[st.integers(0, 60)] * 2, st.integers(60, 200)))
def test_the_mesh_s_region_shows_the_mouth_and_not_the_nose(box: FaceBox) -> None:
    points = mesh(box)
    seen = region_of_mesh(points, box)
    assert seen.shape == (box[3] - middle(box), box[2] - box[0])

    def at(*ids: int) -> int:
        x, y = points[list(ids)].mean(0)
        return int(seen[int(y) - middle(box), int(x) - box[0]])

    assert at(13, 14) == 255 and at(17, 18) == 255, "lips and the skin below them"
    assert at(98, 327, 2) < 128, "the nose is left alone"
    assert set(np.unique(seen[-1:, :3]).tolist()) <= {0}, "beside the chin there is no face"


def classes(*areas: tuple[int, tuple[slice, slice]]) -> Pixels:
    """A class map: background, and rectangles of classes."""
    out = np.zeros((512, 512), np.uint8)
    for kind, (rows, columns) in areas:
        out[rows, columns] = kind
    return out


SQUARE: FaceBox = (100, 100, 356, 356)
FACE = (SKIN, (slice(60, 460), slice(100, 412)))


def test_without_skin_there_is_no_region() -> None:
    assert not region_of_classes(classes(), SQUARE).any()
    assert not region_of_classes(classes((14, (slice(0, 512), slice(0, 512)))), SQUARE).any(), "a neck is no face"


def test_the_nose_is_cut_out_and_the_mouth_is_in() -> None:
    nose = NOSE, (slice(260, 300), slice(230, 282))
    mouth = MOUTH, (slice(340, 370), slice(210, 302))
    seen = region_of_classes(classes(FACE, nose, mouth), SQUARE)
    assert seen.shape == (128, 256)
    scale = (crop_box(SQUARE)[2] - crop_box(SQUARE)[0]) / 512

    def at(row: int, column: int) -> int:
        y, x = crop_box(SQUARE)[1] + row * scale, crop_box(SQUARE)[0] + column * scale
        return int(seen[int(y) - middle(SQUARE), int(x) - SQUARE[0]])

    assert at(280, 256) == 0 and at(355, 256) == 255 and at(420, 256) == 255
    without = region_of_classes(classes(FACE, nose), SQUARE)
    assert (seen >= without).all(), "a mouth adds, and takes nothing away"


def test_skin_beside_the_mouth_comes_in_and_the_middle_does_not() -> None:
    jaw = _jaw(classes(FACE))
    row = jaw[300]
    columns = np.flatnonzero(row)
    assert columns.min() == 100 - 10 + 34 and columns.max() == 411 + 10 - 34
    assert not row[:124].any() and row[256] == 255


def test_the_kernels_are_upstream_s() -> None:
    house, bar = _house(), _bar()
    assert (house.shape, int(house.sum())) == ((33, 33), 373) and np.array_equal(house, house[:, ::-1])
    assert (bar.shape, int(bar.sum())) == ((3, 35), 37) and np.array_equal(bar, bar[::-1, ::-1])
