"""Planes that are bent by a coarse field: nothing changes where it stands still, and what moves comes from where it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.compose.bent_planes import (
    FieldGrid,
    KeptPicture,
    bend,
    bend_plane,
    changed_box,
    planes_of,
    twice,
)
from musetalk_agent.media_types import Box, Pixels

SIZE = 128, 96
"""Width and height."""
BOX = Box(16, 10, 112, 86)
STEP = 8


def picture(seed: int = 0) -> Pixels:
    """A smooth I420 picture: waves, which linear sampling of the enlarged plane gives back to a level or two."""
    width, height = SIZE
    rng = np.random.default_rng(seed)
    planes = []
    for scale in (1, 2, 2):
        y, x = np.mgrid[: height // scale, : width // scale] * scale
        phases = rng.uniform(0, 6, 2)
        planes.append(128 + 50 * np.sin(x / 11 + phases[0]) + 50 * np.cos(y / 9 + phases[1]))
    return np.concatenate([np.clip(plane, 0, 255).astype(np.uint8).ravel() for plane in planes])


def grid(step: int = STEP, box: Box = BOX) -> FieldGrid:
    return FieldGrid(box, step)


def still(made: FieldGrid, right: float = 0.0, down: float = 0.0) -> np.ndarray:
    """A field that says that every pixel comes from so far to the right, and down."""
    return np.stack([made.nodes[..., 0] + right, made.nodes[..., 1] + down]).astype(np.float32)


def swirl(made: FieldGrid) -> np.ndarray:
    """Pixels come from up to 1.5 pixels away, in every place otherwise, and the box's border stands still, as round a head."""
    x, y = made.nodes[..., 0], made.nodes[..., 1]
    across, down = (x - BOX.x0) / BOX.width, (y - BOX.y0) / BOX.height
    much = 1.5 * np.clip(4 * np.minimum.reduce([across, 1 - across, down, 1 - down]), 0, 1)
    return np.stack([x + much * np.sin(y / 30), y + much * np.cos(x / 30)]).astype(np.float32)


@pytest.mark.parametrize("step", [4, 8, 12, 16, 20])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_field_that_stands_still_maps_every_pixel_to_its_own_place(step: int, scale: int) -> None:
    made = grid(step)
    part = Box(24, 14, 88, 70)
    x, y = made.maps(still(made), part, scale)
    assert x.shape == y.shape == (part.height // scale, part.width // scale)
    # the middle of a pixel of a halved plane lies between two of the picture's
    middle = (scale - 1) / 2
    assert np.allclose(x[5], part.x0 + middle + scale * np.arange(part.width // scale), atol=1e-3)
    assert np.allclose(y[:, 5], part.y0 + middle + scale * np.arange(part.height // scale), atol=1e-3)


@pytest.mark.parametrize("step", [4, 8, 12])
def test_a_part_is_enlarged_as_the_whole_is(step: int) -> None:
    made = grid(step)
    field, inner = swirl(made), Box(40, 30, 80, 60)
    whole, part = made.maps(field, BOX), made.maps(field, inner)
    for one, other in zip(whole, part, strict=True):
        rows = slice(inner.y0 - BOX.y0, inner.y1 - BOX.y0)
        assert np.allclose(one[rows, inner.x0 - BOX.x0 : inner.x1 - BOX.x0], other, atol=2e-3)


def test_four_pixels_beside_each_other_are_mapped_by_their_middle() -> None:
    made = grid()
    field = swirl(made)
    x, y = made.maps(field, BOX)
    quad_x, quad_y = made.quad_maps(field, BOX)
    assert np.abs(x.reshape(BOX.height, -1, 4).mean(2) - quad_x).max() < 0.02
    assert np.abs(y.reshape(BOX.height, -1, 4).mean(2) - quad_y).max() < 0.02


def bent(field: np.ndarray, made: FieldGrid, part: Box = BOX) -> list[Pixels]:
    before, after = planes_of(picture(), SIZE), planes_of(np.zeros(SIZE[0] * SIZE[1] * 3 // 2, np.uint8), SIZE)
    bend(made, field, before, after, part, 8)
    return after


def test_what_stands_still_is_the_same_and_nothing_outside_of_the_part_is_touched() -> None:
    after, before = bent(still(grid()), grid()), planes_of(picture(), SIZE)
    for one, other, scale in zip(before, after, (1, 2, 2), strict=True):
        inside = slice(BOX.y0 // scale, BOX.y1 // scale), slice(BOX.x0 // scale, BOX.x1 // scale)
        assert np.abs(one[inside].astype(int) - other[inside]).max() <= 2
        other[inside] = 0
        assert not other.any()


@pytest.mark.parametrize(("right", "down"), [(4, 0), (-6, 2), (0, -8)])
def test_what_moves_comes_from_where_the_field_says(right: int, down: int) -> None:
    before, after = planes_of(picture(), SIZE), bent(still(grid(), right, down), grid())
    for one, other, scale in zip(before, after, (1, 2, 2), strict=True):
        moved = np.roll(one, (-down // scale, -right // scale), (0, 1)).astype(int)
        inside = slice(BOX.y0 // scale, BOX.y1 // scale), slice(BOX.x0 // scale, BOX.x1 // scale)
        assert np.abs(moved[inside] - other[inside]).max() <= 3


def test_a_part_is_bent_as_it_is_in_the_whole() -> None:
    part = Box(32, 20, 90, 64)
    whole, alone = bent(swirl(grid()), grid()), bent(swirl(grid()), grid(), part)
    for one, other, scale in zip(whole, alone, (1, 2, 2), strict=True):
        inside = slice(part.y0 // scale, part.y1 // scale), slice(part.x0 // scale, part.x1 // scale)
        assert np.abs(one[inside].astype(int) - other[inside]).max() <= 1


@pytest.mark.parametrize("alpha", [False, True])
def test_a_picture_that_is_kept_is_bent_as_one_that_is_not(alpha: bool) -> None:
    made = grid()
    share = planes_of(picture(3), SIZE)[0]
    kept = KeptPicture(picture(), SIZE, made, share if alpha else None)
    after = planes_of(np.zeros(SIZE[0] * SIZE[1] * 3 // 2, np.uint8), SIZE)
    seen = np.zeros_like(share)
    kept.bend(swirl(made), after, seen if alpha else None)
    for one, other in zip(bent(swirl(made), made), after, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 2
    plain = np.zeros_like(share)
    bend_plane(made, swirl(made), share, plain, BOX, 8)
    assert np.abs(plain.astype(int) - seen).max() <= 2 if alpha else not seen.any()


@pytest.mark.parametrize("width", [96, 94, 90])
def test_columns_that_make_no_whole_quads_are_left_over(width: int) -> None:
    box = Box(16, 10, 16 + width, 86)
    kept = KeptPicture(picture(), SIZE, grid(box=box))
    assert kept.box == Box(16, 10, 16 + width // 8 * 8, 86)


def test_enlarging_keeps_a_flat_plane_flat_and_doubles_its_sides() -> None:
    assert np.array_equal(twice(np.full((6, 10), 77, np.uint8)), np.full((12, 20), 77, np.uint8))


def test_planes_are_views() -> None:
    data = picture()
    luma, blue, red = planes_of(data, SIZE)
    assert luma.shape == (96, 128) and blue.shape == red.shape == (48, 64)
    red[0, 0] += 1
    assert data[128 * 96 + 64 * 48] == red[0, 0]


@given(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 47), st.integers(0, 63)), max_size=5))
def test_the_box_of_what_changed_is_the_smallest_even_one(changed: set[tuple[int, int, int]]) -> None:
    one, other = (planes_of(np.full(128 * 96 * 3 // 2, 100, np.uint8), SIZE) for _ in "ab")
    corners = []
    for plane, y, x in changed:
        other[plane][y, x] = 7
        scale = 1 if plane == 0 else 2
        corners += [(x * scale, y * scale), ((x + 1) * scale, (y + 1) * scale)]
    found = changed_box(one, other)
    if not changed:
        assert found is None
        return
    low, high = np.array(corners).min(0), np.array(corners).max(0)
    assert found == Box(int(low[0]), int(low[1]), int(high[0]), int(high[1])).even(*SIZE)
