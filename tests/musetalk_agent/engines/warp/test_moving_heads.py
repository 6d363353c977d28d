"""Heads that move: their directions at the clip's ends, and how far speech and not the head lets the chin fall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.engines.warp.idle_shapes import CHIN_FALLS, fallen, nearest, steadied
from musetalk_agent.engines.warp.mouth_space import CHIN, SAMPLES, MouthShape, eye_frame, mesh_shape, to_mouth
from tests.musetalk_agent.engines.warp import faces

POINTS = faces.demo_points()


def shapes(gaps: list[float]) -> list[MouthShape]:
    made = [faces.opened(POINTS, gap) for gap in gaps]
    return [mesh_shape(to_mouth(eye_frame(points), points)) for points in made]


@given(st.integers(2, 40), st.floats(-0.2, 0.2), st.floats(-0.2, 0.2))
def test_an_even_turn_is_the_same_to_the_ends_of_the_clip(count: int, turn: float, nod: float) -> None:
    rows = (np.arange(count)[:, None] * np.array([turn, nod])).astype(np.float32)
    assert steadied(rows) == pytest.approx(rows, abs=1e-4)


def test_a_clip_that_begins_in_a_fast_turn_shows_the_lips_of_a_face_from_the_front() -> None:
    """Those of one from the side brought its jaw's edge into the front face: a wedge from the mouth's corner to the chin."""
    angles = np.zeros((32, 2), np.float32)
    angles[:, 0] = np.radians(28) * np.sin(2 * np.pi * np.arange(32) / 32)
    side, front = 4, 16
    shown = nearest(steadied(angles), np.array([side, front], np.int64))
    assert shown[[0, 31, 15, 17]].tolist() == [1, 1, 1, 1]
    assert shown[[3, 4, 12]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("period", [4, 5, 8, 16])
def test_a_chin_is_down_with_each_syllable(period: int) -> None:
    """All but the tremor that is taken off is there, at the pace of speech too."""
    gaps = 0.05 * (1 - np.cos(2 * np.pi * np.arange(60) / period))
    meshes = shapes(gaps.tolist())
    falls = fallen(meshes, np.zeros((60, 2), np.float32))
    chins = np.array([mesh.curves[CHIN][SAMPLES // 2] for mesh in meshes])
    way = 0.1 * CHIN_FALLS * 0.1 + 0.9 * np.ptp(chins)
    assert 0.55 * way < np.ptp(falls) < 1.05 * way
    assert np.corrcoef(falls, gaps)[0, 1] > 0.97


def test_a_smile_that_a_nod_makes_wider_for_the_mesh_moves_no_chin() -> None:
    nod = (np.radians(18) * np.sin(2 * np.pi * np.arange(72) / 36)).astype(np.float32)
    angles = np.stack([np.zeros_like(nod), nod], 1)
    falls = fallen(shapes((0.2 + 0.15 * nod).tolist()), angles)
    assert np.ptp(falls) < 0.15 * CHIN_FALLS * np.ptp(0.15 * nod)


def test_a_mouth_that_opens_whenever_the_head_nods_has_its_chin_down() -> None:
    """Not all of it: a nod and the mesh's reading of it cannot be taken apart."""
    nod = (np.radians(18) * np.sin(2 * np.pi * np.arange(72) / 36)).astype(np.float32)
    angles = np.stack([np.zeros_like(nod), nod], 1)
    falls = fallen(shapes(np.where(nod > 0, 0.1, 0.0).tolist()), angles)
    assert falls[nod > 0.2].min() - falls[nod < -0.2].max() > 0.4 * CHIN_FALLS * 0.1
