from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_agent.engines.warp.articulation import APERTURE, OPENING, READING, WIDTH, Articulation, closed, driven
from musetalk_agent.engines.warp.lips import refine
from musetalk_agent.engines.warp.mouth_space import (
    CHIN,
    IL,
    IU,
    OL,
    OU,
    SAMPLES,
    SPAN,
    MouthShape,
    S,
    eye_frame,
    mesh_shape,
    pose_frames,
    to_mouth,
)
from tests.musetalk_agent.engines.warp import faces

MIDDLE = SAMPLES // 2


def rest() -> MouthShape:
    points = faces.demo_points()
    return closed(mesh_shape(to_mouth(eye_frame(points), points)))


def gap(shape: MouthShape) -> float:
    return float((shape.curves[IL] - shape.curves[IU])[MIDDLE])


@pytest.mark.parametrize(("jaw", "share"), [(0, 0), (0.1, 0.136), (0.25, 0.325), (0.5, 0.6), (0.8, 0.864), (1, 1)])
@pytest.mark.parametrize("closure", [0, 0.5, 1])
def test_the_lips_part_by_what_the_mesh_reads_as_the_jaw_and_are_shut_by_closure(
    jaw: float, share: float, closure: float
) -> None:
    """More for a small jaw than in proportion: of small openings the mesh reads less."""
    assert gap(driven(rest(), Articulation(jaw, 0, 0, closure, 0))) == pytest.approx(
        OPENING * share * (1 - closure), abs=1e-3
    )


def test_the_mesh_reads_the_contracts_aperture() -> None:
    assert OPENING * READING == pytest.approx(APERTURE)


def test_width_and_rounding_move_the_corners() -> None:
    base = rest().half
    assert driven(rest(), Articulation(0, 1, 0, 0, 0)).half == pytest.approx(base * (1 + WIDTH))
    assert driven(rest(), Articulation(0, -1, 0, 0, 0)).half == pytest.approx(base * (1 - WIDTH))
    assert driven(rest(), Articulation(0, 0, 1, 0, 0)).half < 0.86 * base


def test_cheeks_follow_the_jaw_down_and_a_spread_mouth_up() -> None:
    base, cheek = rest().curves, np.abs(np.abs(S) - 1.6) < 0.1
    dropped = driven(rest(), Articulation(1, 0, 0, 0, 0)).curves[IU] - base[IU]
    spread = driven(rest(), Articulation(0, 1, 0, 0, 0)).curves[IU] - base[IU]
    assert 0.012 < dropped[cheek].min() < dropped[cheek].max() < 0.05
    assert -0.02 < spread[cheek].min() < spread[cheek].max() < -0.004
    for moved in (dropped, spread):
        assert np.abs(moved[np.abs(S) > 2.35]).max() < 1e-3  # the face's outline stays
    assert np.abs(spread[MIDDLE]) < 1e-3
    shut = driven(rest(), Articulation(1, 1, 0, 1, 0)).curves
    assert (shut[IL] - shut[IU])[np.abs(S) < 1].max() < 1e-3


def test_levels_never_cross() -> None:
    values = (0.0, 0.5, 1.0)
    for jaw in values:
        for rounding in values:
            for closure in values:
                for tuck in values:
                    curves = driven(rest(), Articulation(jaw, -1, rounding, closure, tuck)).curves
                    assert (np.diff(curves[[OU, IU, IL, OL, CHIN]], axis=0) >= 0).all()


def test_closed_lips_meet() -> None:
    points = faces.opened(faces.demo_points(), 0.15)
    shape = mesh_shape(to_mouth(eye_frame(points), points))
    assert gap(shape) > 0.1
    assert np.array_equal(closed(shape).curves[IU], closed(shape).curves[IL])


@pytest.mark.parametrize("half", [0.15, 0.29, 0.44])
def test_s_and_u_are_inverse(half: float) -> None:
    shape = MouthShape(0.03, half, np.zeros((5, SAMPLES), np.float32))
    u = shape.u_of_s(S)
    assert (np.diff(u) > 0).all()
    assert np.allclose(shape.s_of_u(u), S, atol=1e-4)
    assert shape.u_of_s(np.array([1.0, -1.0, SPAN], np.float32)) == pytest.approx([0.03 + half, 0.03 - half, 0.69])


def test_poses_are_found_by_what_speech_does_not_move() -> None:
    points = faces.demo_points()
    turn = np.array([[0.96, -0.2], [0.24, 0.93]], np.float32)
    moved = np.asarray(faces.opened(points, 0.2) @ turn.T + (31, -12), np.float32)
    frames = pose_frames(np.stack([points, moved]), 0)
    assert np.allclose(frames[1][:, :2], turn @ frames[0][:, :2], atol=0.02)
    assert np.allclose(to_mouth(frames[1], moved[[33, 263, 2]]), to_mouth(frames[0], points[[33, 263, 2]]), atol=1e-3)


@pytest.mark.parametrize("teeth", [True, False], ids=["teeth", "dark"])
@pytest.mark.parametrize("error", [-0.02, 0.0, 0.015])
def test_edges_of_the_lips_come_from_the_pixels(teeth: bool, error: float) -> None:
    """The mesh may be wrong by a few percent; what is cut out is the opening that the picture shows, and little more."""
    points = faces.opened(faces.placed(faces.demo_points(), (240, 280), 150), 0.12)
    frame = eye_frame(points)
    true = mesh_shape(to_mouth(frame, points))
    wrong = MouthShape(
        true.centre, true.half, true.curves + np.float32(error) * np.array([[1], [1], [1], [1], [0]], np.float32)
    )
    found = refine(wrong, frame, faces.drawn(points, (480, 480), teeth))
    near = np.abs(S) < 0.6
    above = (true.curves[IU] - found.curves[IU])[near]
    below = (found.curves[IL] - true.curves[IL])[near]
    assert min(above.min(), below.min()) > -0.003  # half a pixel
    assert max(above.max(), below.max()) < 0.04


def test_lips_that_meet_are_not_cut() -> None:
    points = faces.demo_points()
    shape = refine(mesh_shape(to_mouth(eye_frame(points), points)), eye_frame(points), faces.demo_picture())
    assert gap(shape) == 0


@pytest.mark.parametrize(("below", "half"), [(0.0, 0.02), (0.03, 0.02), (0.03, 0.035)])
def test_a_dark_band_on_closed_lips_is_no_opening(below: float, half: float) -> None:
    """A moustache, lipstick or a shadow: the mesh sees the lips together, and that is where they are."""
    points = faces.placed(faces.demo_points(), (240, 280), 150)
    for upper, lower in zip(faces.INNER_UPPER, faces.INNER_LOWER, strict=True):
        points[lower] = points[upper]
    frame, picture = eye_frame(points), faces.drawn(points, (480, 480))
    mesh, line = mesh_shape(to_mouth(frame, points)), points[[*faces.INNER_UPPER]]
    down = np.array([0, 150], np.float32)
    band = np.concatenate([line + (below - half) * down, (line + (below + half) * down)[::-1]])
    cv2.fillPoly(picture, [np.round(band * 16).astype(np.int32)], faces.DARK, cv2.LINE_AA, 4)
    found = refine(mesh, frame, picture)
    assert gap(found) == 0
    assert abs(float(found.curves[IU][MIDDLE] - mesh.curves[IU][MIDDLE])) < 0.035


def test_lips_without_any_height_are_refined_without_a_colour_of_their_own() -> None:
    """A mesh whose upper lip is a line leaves no pixel to take the lip's colour from; the opening it sees stays."""
    points = faces.opened(faces.placed(faces.demo_points(), (240, 280), 120), 0.12)
    shape, frame = mesh_shape(to_mouth(eye_frame(points), points)), eye_frame(points)
    curves = shape.curves.copy()
    curves[OU], curves[OL] = curves[IU], curves[IL]
    flat = MouthShape(shape.centre, shape.half, curves)
    refined = refine(flat, frame, faces.drawn(points, (480, 480), teeth=True))
    assert np.isfinite(refined.curves).all() and (np.diff(refined.curves, axis=0) >= -1e-6).all()
    assert refined.opening == pytest.approx(shape.opening, abs=0.06)
