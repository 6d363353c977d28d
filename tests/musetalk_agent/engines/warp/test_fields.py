"""Deformations: nothing moves where nothing is to move, mirrored faces move mirrored, and pixels come from where they should."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.engines.warp.articulation import Articulation, closed, driven
from musetalk_agent.engines.warp.enlarged import EnlargedMouth
from musetalk_agent.engines.warp.field import Field, Lattice, ramp
from musetalk_agent.engines.warp.frame_target import fetch
from musetalk_agent.engines.warp.interior import COLUMNS, HEIGHT, PITCH, ROWS, SIDE, Row, blurred, drawn
from musetalk_agent.engines.warp.lips import sample
from musetalk_agent.engines.warp.mouth_space import (
    CHIN,
    NECK,
    OU,
    REACH,
    SAMPLES,
    Floats,
    MouthShape,
    eye_frame,
    mesh_shape,
    to_mouth,
)
from musetalk_agent.media_types import Box, Pixels
from tests.musetalk_agent.engines.warp import faces

EYES = 100.0
BOX = Box(20, 60, 180, 240)
FRAME = np.array([[EYES, 0, 100], [0, EYES, 60]], np.float32)
SIDES = (0.7, 0.7)
TOP = 0.3
ACTS = st.builds(Articulation, st.floats(0, 1), st.floats(-1, 1), *[st.floats(0, 1)] * 3)


def even(shape: MouthShape) -> MouthShape:
    """The shape made the same on both sides."""
    return MouthShape(0.0, shape.half, np.asarray((shape.curves + shape.curves[:, ::-1]) / 2, np.float32))


def rest() -> MouthShape:
    points = faces.placed(faces.demo_points(), (100, 130), EYES)
    return even(closed(mesh_shape(to_mouth(eye_frame(points), points))))


REST = rest()


def between(
    source: MouthShape, target: MouthShape, cell: int = 4, sides: tuple[float, float] = SIDES
) -> tuple[Field, Lattice]:
    """The field, and the lattice with a `u` and a `v` for every place of its grid."""
    lattice = Lattice.over(BOX, FRAME, cell)
    u, v = np.broadcast_arrays(lattice.u, lattice.v)
    return Field.between((source,), target, lattice, TOP, sides)[0], replace(lattice, u=u, v=v)


@given(ACTS)
def test_a_mouth_that_stays_as_it_is_moves_no_pixel(act: Articulation) -> None:
    shape = driven(REST, act)
    field, lattice = between(shape, shape)
    for shift in (field.du, field.upper, field.lower, field.through(lattice.v)):
        assert not shift.any()


@settings(max_examples=60)
@given(ACTS, ACTS)
def test_nothing_is_lost_and_nothing_moves_at_nose_neck_and_cheek(one: Articulation, other: Articulation) -> None:
    source, target = driven(REST, one), driven(REST, other)
    field, lattice = between(source, target)
    through = field.through(lattice.v)
    for shift in (field.s, field.du, field.upper, field.lower, through, *field.levels):
        assert np.isfinite(shift).all()
    end = max(float(shape.curves[CHIN][SAMPLES // 2]) for shape in (source, target)) + NECK
    above, below = lattice.v <= min(TOP, float(target.curves[OU].min()) - 0.03), lattice.v >= end
    assert not field.upper[above].any() and np.abs(field.lower[below]).max(initial=0) < 1e-5
    assert not field.du[above].any() and not field.du[np.abs(lattice.u) > 0.62].any()
    assert np.abs(through).max() < 0.5, "no pixel comes from further than half the eyes' distance"


@settings(max_examples=60)
@given(ACTS, ACTS)
def test_an_even_face_moves_alike_on_both_sides(one: Articulation, other: Articulation) -> None:
    field, lattice = between(even(driven(REST, one)), even(driven(REST, other)))
    assert np.abs(lattice.u + lattice.u[:, ::-1]).max() < 0.011
    shifted = np.abs(field.du + field.du[:, ::-1]).max(), np.abs(field.upper - field.upper[:, ::-1]).max()
    # the lattice's middle is half a pixel beside the face's
    assert max(shifted) < 0.02


@settings(max_examples=40)
@given(ACTS)
def test_skin_is_stretched_and_never_folded(act: Articulation) -> None:
    """From row to row the place that pixels come from goes down."""
    field, lattice = between(REST, driven(REST, act))
    for shift in (field.upper, field.lower):
        assert (np.diff(lattice.v + shift, axis=0) > -0.012).all()


@given(st.floats(0.05, 0.3), st.floats(0.05, 0.3))
def test_beyond_the_face_s_outline_nothing_is_shifted_sideways(left: float, right: float) -> None:
    target = driven(REST, Articulation(0.5, 1.0, 0, 0, 0))
    sides = (target.half + left, target.half + right)
    field, lattice = between(REST, target, sides=sides)
    assert not field.du[lattice.u <= -min(sides[0], 0.6)].any() and not field.du[lattice.u >= min(sides[1], 0.6)].any()
    assert field.du.any()


TURNS = st.floats(-0.6, 0.6)


def turned_frame(angle: float) -> Floats:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn @ np.diag([EYES, 0.8 * EYES]), (100, 60)]).astype(np.float32)


@given(st.integers(4, 60), st.integers(4, 60), st.integers(2, 9), st.floats(-2, 2), st.floats(-2, 2), TURNS)
def test_a_plane_is_turned_and_enlarged_to_the_plane(
    width: int, height: int, cell: int, a: float, b: float, angle: float
) -> None:
    """A linear function of the place comes back at every pixel, the box's edges among them, from a grid that is turned to it."""
    box, frame = Box(10, 20, 10 + 2 * width, 20 + 2 * height), turned_frame(angle)
    lattice = Lattice.over(box, frame, cell)
    u, v = np.broadcast_arrays(lattice.u, lattice.v)
    x, y = (frame[k, 0] * u + frame[k, 1] * v + frame[k, 2] for k in (0, 1))
    grid = np.dstack([a * x + b * y, u, v, x]).astype(np.float32)
    part = Box(box.x0 + 1, box.y0 + 2, box.x1, box.y1 - 1)
    made = [(lattice.spread(grid, part), part)]
    for nodes, seen in ((lattice, box), (lattice, part), (lattice.within(part), part)):
        made.append((np.stack(nodes.enlarge(nodes.turned(grid, 3), seen)), seen))
    for planes, seen in made:
        assert planes.shape == (3, seen.height, seen.width)
        place_x, place_y = np.arange(seen.x0, seen.x1)[None], np.arange(seen.y0, seen.y1)[:, None]
        assert np.abs(planes[0] - (a * place_x + b * place_y)).max() < 0.05
        back = np.stack(np.broadcast_arrays(place_x, place_y), -1) - frame[:, 2]
        exact = back @ np.linalg.inv(frame[:, :2].astype(np.float64)).T
        assert np.abs(planes[1:3].transpose(1, 2, 0) - exact).max() < 1e-3


@given(st.integers(2, 9), TURNS, st.integers(0, 30), st.integers(0, 20), st.integers(1, 12), st.integers(1, 12))
def test_what_is_seen_on_the_grid_is_within_its_pixels(
    cell: int, angle: float, column: int, row: int, width: int, height: int
) -> None:
    frame = turned_frame(angle)
    lattice = Lattice.over(BOX, frame, cell)
    seen = np.zeros((lattice.v.size, lattice.u.size), np.bool_)
    assert lattice.around(seen, frame, BOX) is None
    seen[row : row + height, column : column + width] = True
    shown = lattice.spread(np.dstack([seen] * 4).astype(np.float32), BOX)[0] > 1e-6
    part = lattice.around(seen, frame, BOX)
    if part is not None:
        shown[part.y0 - BOX.y0 : part.y1 - BOX.y0, part.x0 - BOX.x0 : part.x1 - BOX.x0] = False
    assert not shown.any()


@given(st.integers(0, 90), st.integers(0, 90), st.integers(1, 60), st.integers(1, 60), st.integers(2, 5))
def test_part_of_the_box_is_enlarged_as_in_the_whole(x: int, y: int, width: int, height: int, cell: int) -> None:
    lattice = Lattice.over(BOX, FRAME, cell)
    values = np.random.default_rng(1).random((lattice.rows, lattice.cols), np.float32)
    part = Box(BOX.x0 + x, BOX.y0 + y, BOX.x0 + x + width, BOX.y0 + y + height)
    same = lattice.enlarge([values], BOX)[0][y : y + height, x : x + width]
    assert np.abs(lattice.enlarge([values], part)[0] - same).max() < 1e-5


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9), st.floats(-0.5, 0.5), st.floats(0.001, 1))
def test_a_ramp_is_nought_before_one_behind_and_never_turns(values: list[float], start: float, length: float) -> None:
    v = np.sort(np.array(values, np.float32))
    made = ramp(v, np.float32(start), np.float32(1 / length))
    assert (np.diff(made) >= 0).all() and ((made >= 0) & (made <= 1)).all()
    assert not made[v <= np.float32(start)].any() and (made[v >= start + length + 1e-3] == 1).all()


PICTURE = np.random.default_rng(4).integers(0, 256, (40, 50, 3), np.uint8)
SMOOTH = np.asarray(cv2.GaussianBlur(PICTURE, (0, 0), 2), np.uint8)


def in_window(source: Pixels) -> tuple[Box, EnlargedMouth]:
    """The window that a source fills, and the source enlarged."""
    window = Box(4, 6, 4 + source.shape[1], 6 + source.shape[0])
    return window, EnlargedMouth.of(source, window, window)


def fetched(source: Pixels, place: Box, dx: float, dy: float) -> Pixels:
    """The pixels at `place` in `source`, all of them from so far to the right and down."""
    window, mouth = in_window(source)
    lattice = Lattice.over(Box(4 + place.x0, 6 + place.y0, 4 + place.x1, 6 + place.y1), FRAME, 3)
    shift = np.empty((2, lattice.rows, lattice.cols), np.float32)
    shift[0], shift[1] = dx, dy
    return fetch(source, window, mouth, lattice, shift)


@given(st.integers(0, 20), st.integers(0, 10), st.integers(-40, 40), st.integers(-40, 40), st.integers(1, 30))
def test_whole_shifts_fetch_the_very_pixels_and_repeat_the_edge(x: int, y: int, dx: int, dy: int, size: int) -> None:
    made = fetched(PICTURE, Box(x, y, x + size, y + size), dx, dy)
    rows = np.clip(np.arange(y, y + size) + dy, 0, 39)
    columns = np.clip(np.arange(x, x + size) + dx, 0, 49)
    assert np.array_equal(made, PICTURE[rows][:, columns])


@given(st.floats(-6, 6), st.floats(-6, 6))
def test_pixels_are_fetched_from_where_the_shift_points(dx: float, dy: float) -> None:
    ramp = np.zeros((40, 50, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(50) * 4, np.arange(40)[:, None] * 5
    made = fetched(ramp, Box(20, 15, 32, 25), dx, dy)
    x, y = np.meshgrid(np.arange(20, 32) + dx, np.arange(15, 25) + dy)
    assert np.abs(made[..., 0] - 4 * x).max() <= 1.0 and np.abs(made[..., 1] - 5 * y).max() <= 1.0


@given(st.integers(0, 9), st.integers(0, 12), st.integers(1, 4), st.integers(1, 4))
def test_pixels_are_moved_around_the_nodes_that_are_and_copied_elsewhere(
    r0: int, c0: int, rows: int, cols: int
) -> None:
    window, mouth = in_window(SMOOTH)
    lattice = Lattice.over(Box(10, 10, 46, 38), FRAME, 3)
    shift = np.zeros((2, lattice.rows, lattice.cols), np.float32)
    shift[:, r0 : r0 + rows, c0 : c0 + cols] = 2.0
    made = fetch(SMOOTH, window, mouth, lattice, shift)
    x, y = (np.float32(np.arange(n)) for n in (36, 28))
    right, down = lattice.enlarge(shift, lattice.box)
    map_x, map_y = right + x + 6, down + y[:, None] + 4
    exact = cv2.remap(SMOOTH.astype(np.float32), map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(made - exact).max() < 2.5


@given(ACTS, ACTS)
def test_fields_of_two_sources_are_those_of_each(one: Articulation, other: Articulation) -> None:
    target = driven(REST, Articulation(1, 0, 0, 0, 0))  # its chin is the lowest: all fields end there
    sources = driven(REST, one), driven(REST, other)
    both = Field.between(sources, target, Lattice.over(BOX, FRAME, 4), TOP, SIDES)
    for source, made in zip(sources, both, strict=True):
        alone, _ = between(source, target)
        for plane, same in ((made.du, alone.du), (made.upper, alone.upper), (made.lower, alone.lower)):
            assert np.abs(plane - same).max() < 1e-6


@given(st.floats(20, 60), st.floats(-np.pi, np.pi), st.floats(10, 30), st.floats(10, 30))
def test_sampling_in_mouth_space_reads_the_picture_through_the_frame(
    eyes: float, angle: float, x: float, y: float
) -> None:
    frame = np.array([[np.cos(angle), -np.sin(angle), x], [np.sin(angle), np.cos(angle), y]], np.float32)
    frame[:, :2] *= np.float32(eyes)
    u, v = np.meshgrid(np.linspace(-0.2, 0.2, 5, dtype=np.float32), np.linspace(-0.2, 0.2, 4, dtype=np.float32))
    places = np.stack([u, v], -1) @ frame[:, :2].T + frame[:, 2]
    exact = cv2.remap(PICTURE, places.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(sample(PICTURE, frame, u, v).astype(int) - exact).max() <= 8, "a thirty-second of a pixel"


COLOUR, GUM = np.array([200, 210, 220], np.float32), np.array([60, 50, 120], np.float32)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("soft", [0.0, 0.004, 0.02])
def test_teeth_are_even_opaque_in_the_middle_and_end_at_the_sides(lower: bool, soft: float) -> None:
    tile = drawn(COLOUR, GUM, soft, lower).tile
    assert tile.shape == (ROWS, COLUMNS, 4) and np.isfinite(tile).all()
    assert tile[..., 3].min() >= 0 and tile[..., 3].max() <= 1 + 1e-5
    assert tile[..., :3].min() > -1 and (tile[..., :3].max((0, 1)) <= np.maximum(COLOUR, GUM) + 1e-2).all()
    assert np.abs(tile - tile[:, ::-1]).max() < 0.02, "left as right"
    row = round(0.5 * HEIGHT / PITCH)
    assert tile[row, COLUMNS // 2, 3] > 0.99 and tile[row, [0, -1], 3].max() < 0.1
    assert tile[-1, COLUMNS // 2, 3] < 0.2, "past the edge there is no tooth"


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_where_there_are_no_teeth_nothing_is_opaque(u: float, beyond: float) -> None:
    row = drawn(COLOUR, GUM, 0.004, lower=False)
    seen = row.at(np.full((1, 1), u, np.float32), np.full((1, 1), beyond, np.float32))[0, 0]
    assert np.isfinite(seen).all()
    if abs(u) > SIDE + PITCH or beyond < -HEIGHT - PITCH or beyond > 0.02 + PITCH:
        assert seen[3] == 0


@given(st.floats(0, 0.03))
def test_softening_a_flat_tile_leaves_its_colour(soft: float) -> None:
    tile = np.zeros((ROWS, COLUMNS, 4), np.float32)
    tile[..., :3] = COLOUR
    tile[20:, :, 3] = 1
    made = blurred(tile, soft)
    assert np.abs(made[..., :3] - COLOUR).max() < 0.5, "the dark beyond does not bleed in"
    assert (np.diff(made[:, COLUMNS // 2, 3]) >= -1e-5).all()


def test_a_row_gives_back_its_own_pixels_at_their_places() -> None:
    tile = np.random.default_rng(6).random((ROWS, COLUMNS, 4)).astype(np.float32)
    u = (np.arange(COLUMNS, dtype=np.float32) * PITCH - SIDE)[None].repeat(ROWS, 0)
    beyond = (np.arange(ROWS, dtype=np.float32) * PITCH - HEIGHT)[:, None].repeat(COLUMNS, 1)
    assert np.abs(Row(tile).at(u, beyond) - tile).max() < 0.04


def test_the_deformation_reaches_as_far_as_the_patch() -> None:
    """At the sides of the patch the target's places are at their end, so that there is nothing beyond to move."""
    lattice = Lattice.over(Box(0, 60, 200, 240), FRAME, 4)
    s = replace(REST, centre=0.0).s_of_u(np.broadcast_to(lattice.u, (2, lattice.u.size)))
    assert s[:, 0] == pytest.approx(s[0, 0]) and lattice.u.max() > REACH
    assert np.abs(s).max() == pytest.approx(2.4, abs=1e-5)
