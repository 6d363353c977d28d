"""Teeth as they are drawn: single ones, in two rows, never in the colour of a lip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.warp.interior import CROWN, GREY, UPPER_ENDS, Palette, Row, drawn
from musetalk_agent.engines.warp.mouth_space import Floats, eye_frame, mesh_shape, to_mouth
from tests.musetalk_agent.engines.warp import faces

WHITE = np.array([220, 235, 240], np.float32)
GUM = np.array([90, 80, 160], np.float32)


def light(row: Row, u: list[float], beyond: float) -> Floats:
    """Luminance of the row at `u`, `beyond` its edge, as it shows on black."""
    places = np.array([u], np.float32)
    seen = row.at(places, np.full_like(places, beyond))[0]
    return np.asarray((seen[:, :3] @ GREY) * seen[:, 3], np.float32)


@pytest.mark.parametrize("lower", [False, True], ids=["upper", "lower"])
def test_teeth_are_apart_and_their_row_curves(lower: bool) -> None:
    row = drawn(WHITE, GUM, 0.008, lower)
    gap, crown = light(row, [0.0, 0.03], -0.04)
    assert gap < 0.85 * crown
    assert crown > 0.7 * float(WHITE @ GREY) * (0.8 if lower else 1)
    middle, side = light(row, [0.03, 0.24], -0.012)
    assert side < 0.3 * middle  # there the edge is already nearer to the gum
    assert light(row, [0.03], 0.015)[0] < 5  # nothing past the edge


def test_lateral_incisors_are_shorter_and_gums_are_red() -> None:
    row = drawn(WHITE, GUM, 0.004, lower=False)
    centre, lateral = UPPER_ENDS[0] / 2, (UPPER_ENDS[0] + UPPER_ENDS[1]) / 2
    beyond = np.arange(-0.06, 0.01, 0.001, dtype=np.float32)[:, None]
    opacity = row.at(np.repeat(np.array([[centre, lateral]], np.float32), len(beyond), 0), np.repeat(beyond, 2, 1))[
        ..., 3
    ]
    ends = [float(beyond[np.flatnonzero(opacity[:, k] > 0.5)[-1], 0]) for k in (0, 1)]
    assert 0.01 < ends[0] - ends[1] < 0.03
    gum = row.at(np.array([[centre]], np.float32), np.array([[-CROWN - 0.018]], np.float32))[0, 0]
    assert gum[2] > 1.5 * gum[1]


def test_a_wide_vowel_shows_both_rows_of_teeth(tmp_path: Path) -> None:
    picture, points = faces.demo_picture(), faces.demo_points()
    engine, session = faces.opened_with(tmp_path, [picture], [points])
    patch = engine.infer([PatchRequest(session, 0, np.array([1, 0, 0, 0, 0], np.float32), 1.0)])[0]
    made = faces.composed(picture, patch)
    x, y = points[[13, 14]].mean(0)
    eyes = float(np.linalg.norm(points[33] - points[263]))
    column = made[round(y - 0.02 * eyes) : round(y + 0.15 * eyes), round(x + 0.02 * eyes) : round(x + 0.04 * eyes)]
    lit = (column.astype(np.float32) @ GREY).mean(1)
    dark = int(lit.argmin())
    assert 4 < dark < len(lit) - 4
    for part in (column[:dark].mean(1), column[dark:].mean(1)):
        red = np.where(part @ GREY > 2.2 * lit[dark], part[:, 2] / part[:, 1], 9.0)
        assert red.min() < 1.3  # a lip is redder


def test_a_lip_is_no_tooth() -> None:
    points = faces.placed(faces.demo_points(), (240, 280), 120)
    picture, frame = faces.drawn(points, (480, 480)), eye_frame(points)
    shape = mesh_shape(to_mouth(frame, points))
    lip = np.array(faces.LIP, np.float32)
    rows = [Palette.of(picture, frame, shape, teeth).upper.tile for teeth in (None, lip, lip * 0.4)]
    for tile in rows[1:]:
        assert np.abs(tile - rows[0]).max() < 1
    warm = np.array([150, 205, 220], np.float32)
    assert np.abs(Palette.of(picture, frame, shape, warm).upper.tile - rows[0]).max() > 20
