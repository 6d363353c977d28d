"""Mouth space: what its maps and shapes keep, whatever the face's size, place, tilt and opening."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.engines.warp.articulation import FEATURE_SIZE, Articulation, bump, closed, driven, opened
from musetalk_agent.engines.warp.mouth_space import (
    BESIDE,
    CHIN,
    CORNERS,
    EYES,
    IL,
    IU,
    LEVELS,
    OL,
    OU,
    REACH,
    SAMPLES,
    SPAN,
    Floats,
    MouthShape,
    S,
    eye_frame,
    mesh_shape,
    ordered,
    pose_frames,
    to_mouth,
)
from tests.musetalk_agent.engines.warp import faces

POINTS = faces.demo_points()
MIDDLE = SAMPLES // 2
PLACES = st.tuples(st.floats(-500, 1500), st.floats(-500, 1500), st.floats(20, 400), st.floats(-np.pi, np.pi))


def placed(place: tuple[float, float, float, float], gap: float = 0.0) -> Floats:
    """The demo avatar's mesh: mouth at (x, y), the eyes so far apart, turned by an angle, the lips apart by a gap."""
    x, y, eyes, angle = place
    return faces.placed(faces.opened(POINTS, gap) if gap else POINTS, (x, y), eyes, angle)


def to_pixels(frame: Floats, mouth: Floats) -> Floats:
    return np.asarray(mouth @ frame[:, :2].T + frame[:, 2], np.float32)


def shape_of(gap: float = 0.0) -> MouthShape:
    points = placed((100, 100, 120, 0.0), gap)
    return mesh_shape(to_mouth(eye_frame(points), points))


@given(PLACES)
def test_the_eyes_are_one_apart_about_the_origin_of_mouth_space(place: tuple[float, float, float, float]) -> None:
    points = placed(place)
    mouth = to_mouth(eye_frame(points), points)
    assert mouth[list(EYES)] == pytest.approx(np.array([[-0.5, 0], [0.5, 0]]), abs=2e-3)
    assert mouth[152, 1] > mouth[14, 1] > 0, "v runs down the face"


@given(PLACES, st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=9))
def test_pixels_and_mouth_space_are_each_other_s_inverse(
    place: tuple[float, float, float, float], points: list[tuple[float, float]]
) -> None:
    frame = eye_frame(placed(place))
    there = np.array(points, np.float32)
    assert np.abs(to_mouth(frame, to_pixels(frame, there)) - there).max() < 2e-3


@settings(max_examples=40)
@given(PLACES, st.sampled_from([0.0, 0.05, 0.2]))
def test_a_mouth_s_shape_does_not_depend_on_where_the_face_is(
    place: tuple[float, float, float, float], gap: float
) -> None:
    points = placed(place, gap)
    found, usual = mesh_shape(to_mouth(eye_frame(points), points)), shape_of(gap)
    assert abs(found.half - usual.half) < 3e-3 and abs(found.centre - usual.centre) < 3e-3
    assert np.abs(found.curves - usual.curves).max() < 6e-3


@settings(max_examples=40)
@given(st.lists(PLACES, min_size=1, max_size=4), st.data())
def test_a_face_that_only_moves_and_turns_is_followed_exactly(
    places: list[tuple[float, float, float, float]], drawn: st.DataObject
) -> None:
    landmarks = np.stack([placed(place) for place in places])
    reference = drawn.draw(st.integers(0, len(places) - 1))
    frames = pose_frames(landmarks, reference)
    assert frames.shape == (len(places), 2, 3) and np.isfinite(frames).all()
    for frame, points in zip(frames, landmarks, strict=True):
        exact = eye_frame(points)
        assert np.abs(frame - exact).max() < 2e-3 * max(1.0, float(np.abs(exact).max()))


def test_points_all_in_one_place_give_a_frame_all_the_same() -> None:
    landmarks = np.stack([placed((100, 100, 120, 0.0)), np.full((468, 2), 50, np.float32)])
    frames = pose_frames(landmarks, 0)
    assert np.isfinite(frames).all() and abs(np.linalg.det(frames[1][:, :2])) >= 4 - 1e-3


HALVES = st.floats(0.12, 0.45)


@given(HALVES, st.floats(-0.2, 0.2))
def test_places_across_the_mouth_go_one_way_from_end_to_end(half: float, centre: float) -> None:
    shape = replace(shape_of(), half=half, centre=centre)
    u = shape.u_of_s(S)
    assert (np.diff(u) > 0).all()
    assert np.abs(u + u[::-1] - 2 * centre).max() < 1e-5, "as far to the left as to the right"
    assert u[-1] - centre == pytest.approx(REACH, abs=1e-5)
    assert shape.u_of_s(np.array([-1, 0, 1], np.float32)) == pytest.approx(
        [centre - half, centre, centre + half], abs=1e-5
    )
    just = shape.u_of_s(np.array([1, 1.01], np.float32))
    assert (just[1] - just[0]) / 0.01 == pytest.approx(BESIDE, rel=0.1), (
        "so fast just outside the corners, for any mouth"
    )


@given(HALVES, st.lists(st.floats(-SPAN, SPAN), min_size=1, max_size=20))
def test_s_of_u_takes_u_of_s_back(half: float, places: list[float]) -> None:
    shape = replace(shape_of(), half=half)
    s = np.array(places, np.float32)
    assert np.abs(shape.s_of_u(shape.u_of_s(s)) - s).max() < 0.02
    assert np.abs(shape.s_of_u(shape.u_of_s(S)) - S).max() < 1e-4


@given(st.integers(0, 999))
def test_ordered_curves_never_cross_and_stay_as_they_are(seed: int) -> None:
    curves = np.random.default_rng(seed).normal(0.4, 0.2, (LEVELS, SAMPLES)).astype(np.float32)
    once = ordered(curves)
    assert (once[OU] <= once[IU] - 0.0199).all() and (once[IL] >= once[IU]).all()
    assert (once[OL] >= once[IL] + 0.0299).all() and (once[CHIN] >= once[OL] + 0.0999).all()
    assert np.array_equal(ordered(once), once)
    assert np.array_equal(once[IU], curves[IU]), "the upper lip's inner edge is what the others keep away from"


@given(st.floats(0, 1), st.sampled_from([0.0, 0.1]))
def test_between_two_shapes_all_goes_along_the_straight_line(amount: float, gap: float) -> None:
    one, other = shape_of(gap), replace(shape_of(0.2), half=0.4, centre=0.1)
    between = one.towards(other, amount)
    assert between.half == pytest.approx(one.half + amount * (other.half - one.half), abs=1e-6)
    assert between.curves == pytest.approx((1 - amount) * one.curves + amount * other.curves, abs=1e-5)
    for end, shape in ((0.0, one), (1.0, other)):
        assert np.abs(one.towards(other, end).curves - shape.curves).max() < 1e-6


@given(st.lists(st.floats(width=32), min_size=FEATURE_SIZE, max_size=FEATURE_SIZE))
def test_any_numbers_make_an_articulation_within_its_ranges(values: list[float]) -> None:
    act = Articulation.of(np.array(values, np.float32))
    assert all(0 <= value <= 1 for value in (act.jaw, act.rounding, act.closure, act.tuck))
    assert -1 <= act.width <= 1 and 0 <= act.aperture < 0.25 and 0 <= act.drop < 0.15
    for given_value, taken, low in zip(values, (act.jaw, act.width), (0.0, -1.0), strict=False):
        if low <= given_value <= 1:
            assert taken == pytest.approx(given_value, abs=1e-6)


ACTS = st.builds(Articulation, *[st.floats(0, 1)] * 1, st.floats(-1, 1), *[st.floats(0, 1)] * 3)


@given(ACTS, st.sampled_from([0.0, 0.03, 0.1]))
def test_any_articulation_makes_a_mouth_whose_curves_are_finite_and_in_order(act: Articulation, gap: float) -> None:
    made = driven(closed(shape_of(gap)), act)
    assert np.isfinite(made.curves).all() and 0.05 < made.half < 0.6
    assert np.array_equal(ordered(made.curves), made.curves)
    assert made.opening <= act.aperture + 0.05


@given(st.floats(0, 0.95), st.floats(0, 1))
def test_a_wider_jaw_never_closes_the_lips_or_lifts_the_chin(jaw: float, closure: float) -> None:
    rest = closed(shape_of())
    less, more = (driven(rest, Articulation(one, 0, 0, closure, 0)) for one in (jaw, jaw + 0.05))
    assert more.opening >= less.opening - 1e-5
    assert more.curves[CHIN][MIDDLE] >= less.curves[CHIN][MIDDLE] - 1e-6


@given(ACTS)
def test_pressed_lips_are_closed_whatever_else_the_mouth_does(act: Articulation) -> None:
    assert replace(act, closure=1.0).aperture == 0.0


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.06, 0.15])
def test_closing_brings_the_lips_together_and_the_chin_no_lower(gap: float) -> None:
    shape = shape_of(gap)
    rest = closed(shape)
    assert rest.opening < 1e-5 and (rest.curves[CHIN] <= shape.curves[CHIN] + 0.01).all()
    assert np.abs(closed(rest).curves - rest.curves).max() < 1e-3, "closed lips stay as they are"


def test_a_mouth_that_does_nothing_is_the_mouth_at_rest() -> None:
    rest = closed(shape_of())
    made = driven(rest, Articulation.of(np.zeros(FEATURE_SIZE, np.float32)))
    assert made.half == rest.half and np.abs(made.curves - rest.curves).max() < 1e-6


@given(st.floats(0, 0.2))
def test_lips_are_cut_apart_no_further_than_they_are_to_open(gap: float) -> None:
    shape = closed(shape_of())
    cut = opened(shape, gap)
    assert np.isfinite(cut.curves).all()
    assert (cut.curves[IL] - cut.curves[IU] >= shape.curves[IL] - shape.curves[IU] - 1e-6).all()
    assert np.abs(cut.curves[IL] + cut.curves[IU] - shape.curves[IL] - shape.curves[IU]).max() < 1e-5, "evenly"
    if gap == 0:
        assert np.array_equal(cut.curves, shape.curves)


@given(st.floats(0.3, 2.4), st.floats(0.3, 3))
def test_a_bump_is_one_in_the_middle_falls_to_both_sides_and_ends(reach: float, power: float) -> None:
    found = bump(reach, power)
    assert found[MIDDLE] == 1.0 and np.array_equal(found, found[::-1])
    assert (np.diff(found[MIDDLE:]) <= 0).all() and not found[np.abs(S) >= reach + 1e-6].any()


def test_the_corners_of_the_mesh_are_where_s_is_one() -> None:
    points = placed((100, 100, 120, 0.0))
    mouth = to_mouth(eye_frame(points), points)
    shape = mesh_shape(mouth)
    corners = shape.s_of_u(mouth[list(CORNERS), 0])
    assert corners == pytest.approx([-1, 1], abs=0.02)
