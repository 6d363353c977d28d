"""Where lips end that the mesh reads wrongly: rows of teeth under a mesh that lies too high, and lips that meet off its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.warp.lip_line import lip_line
from musetalk_agent.engines.warp.mouth_space import INNER_LOWER, OUTER_LOWER, Floats
from musetalk_agent.engines.warp.tooth_rows import lowered
from musetalk_agent.media_types import Pixels
from tests.musetalk_agent.engines.warp.faces import (
    SHADED_TEETH,
    composed,
    demo_points,
    drawn,
    opened,
    opened_with,
    placed,
    with_rows_of_teeth,
)

SKIN, LIP, TOOTH, TONGUE, DARK = (130, 150, 205), (95, 80, 190), (215, 225, 230), (70, 60, 130), (25, 20, 40)
GLEAM, HAIR = (190, 180, 235), (25, 30, 40)
COLUMNS = 81
Bands = tuple[tuple[float, tuple[int, int, int]], ...]


def banded(bands: Bands) -> Callable[[Floats], Pixels]:
    """A mouth in bands, each from a place `v` on, as the search looks at it; teeth and gleams are not as wide as the mouth."""

    def looked(v: Floats) -> Pixels:
        out = np.empty((*v.shape, 3), np.uint8)
        s = np.abs(np.linspace(-1.12, 1.12, v.shape[1]))
        for start, colour in bands:
            narrow = s < 0.5 if colour in (TOOTH, GLEAM) else s < 2
            out[(v >= start) & narrow] = colour
        return out

    return looked


@pytest.mark.parametrize(
    ("bands", "edge"),
    [
        pytest.param(((-1, DARK), (0.02, TONGUE), (0.05, TOOTH), (0.09, LIP), (0.16, SKIN)), 0.09, id="below a tongue"),
        pytest.param(((-1, DARK), (0.0, TOOTH), (0.06, LIP), (0.13, SKIN)), 0.06, id="right under the edge"),
        pytest.param(((-1, DARK), (0.05, TOOTH), (0.09, LIP), (0.13, HAIR)), 0.09, id="over a beard"),
    ],
)
def test_the_inside_reaches_below_the_lower_teeth(bands: Bands, edge: float) -> None:
    found = lowered(banded(bands), np.zeros(COLUMNS))
    middle = np.abs(np.linspace(-1.12, 1.12, COLUMNS)) < 0.4
    assert found[middle] == pytest.approx(edge, abs=0.009)
    assert found[0] == found[-1] == 0, "beside the teeth the edge is where it was"


@pytest.mark.parametrize(
    "bands",
    [
        pytest.param(((-1, DARK), (0.0, LIP), (0.08, SKIN)), id="a lip"),
        pytest.param(((-1, DARK), (0.0, LIP), (0.05, GLEAM), (0.065, LIP), (0.10, SKIN)), id="a gleam on it"),
        pytest.param(((-1, DARK), (0.0, LIP), (0.04, SKIN), (0.08, HAIR)), id="skin over a beard"),
        pytest.param(((-1, DARK), (0.0, TOOTH), (0.02, LIP), (0.08, SKIN)), id="a blurred edge of teeth"),
        pytest.param(((-1, SKIN),), id="nothing but skin"),
    ],
)
def test_what_is_no_row_of_teeth_leaves_the_edge_where_it_was(bands: Bands) -> None:
    assert not lowered(banded(bands), np.zeros(COLUMNS)).any()


def test_a_laugh_whose_lower_teeth_the_mesh_takes_for_the_lip_closes_whole(tmp_path: Path) -> None:
    """The lower row lies on the lip that the mesh sees: cut along the mesh it would stay on the closed lips."""
    truth = opened(placed(demo_points(), (320, 300), 260.0), 0.2)
    picture = with_rows_of_teeth(drawn(truth, (640, 560)), truth, "lower")
    mesh = truth.copy()
    mesh[[*INNER_LOWER[1:-1], *OUTER_LOWER[1:-1]], 1] -= 0.09 * 260.0
    engine, session = opened_with(tmp_path, [picture], [mesh])
    (rest,) = engine.infer([PatchRequest(session, 0, session.rest, 1.0)])
    made = composed(picture, rest)

    def teeth(pixels: Pixels) -> int:
        mouth = pixels[270:380, 230:410].astype(int)
        return int((np.abs(mouth - np.array(SHADED_TEETH)).max(-1) < 25).sum())

    assert teeth(picture) > 800
    assert teeth(made) < 40


def lit(line: Callable[[Floats], Floats], hairs: bool = False) -> Floats:
    """The luminance of closed lips, 70 rows, with a dark line in which they meet, and dark hairs above them if asked."""
    s = np.linspace(-1, 1, COLUMNS, dtype=np.float32)
    away = np.arange(70, dtype=np.float32)[:, None] + 0.5 - line(s)
    light: Floats = (120 - 30 * np.exp(-((away / 1.5) ** 2))).astype(np.float32)
    if hairs:
        light[:8] = np.random.default_rng(3).uniform(20, 120, light[:8].shape)
    return light


@pytest.mark.parametrize("hairs", [False, True])
@pytest.mark.parametrize("off", [-6.0, 0.0, 10.0])
def test_closed_lips_meet_in_the_dark_line_that_is_seen(off: float, hairs: bool) -> None:
    s = np.linspace(-1, 1, COLUMNS, dtype=np.float32)
    found = lip_line(lit(lambda s: 30.0 + off + 3 * s * s, hairs), 30.0, np.abs(s) < 0.8)
    assert found is not None
    assert np.abs(found[0] - (30.0 + off + 3 * s * s)).max() < 2  # rows
    assert found[1].min() > 0.03


@pytest.mark.parametrize(
    "light",
    [
        pytest.param(np.full((70, COLUMNS), 120, np.float32), id="even skin"),
        pytest.param(
            np.where(np.arange(70)[:, None] < 30, 40, 120) * np.ones((1, COLUMNS)), id="the edge of a moustache"
        ),
        pytest.param(np.linspace(40, 160, 70)[:, None] * np.ones((1, COLUMNS)), id="a shadow"),
    ],
)
def test_where_no_line_is_seen_there_is_none(light: Floats) -> None:
    middle = np.abs(np.linspace(-1, 1, COLUMNS)) < 0.8
    assert lip_line(light.astype(np.float32), 30.0, middle) is None
