"""The inside of the mouth by itself: where teeth, tongue and shade lie in an opening, and the line between closed lips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.engines.warp.interior import (
    GREY,
    LOWER_EDGE,
    LOWER_HIDDEN,
    LOWER_SHARE,
    SOFT,
    UPPER_EDGE,
    Opening,
    Palette,
    Row,
    drawn,
    paint,
    shadow_line,
    softness,
)
from musetalk_agent.engines.warp.mouth_space import Floats

WHITE, GUM = np.array([200, 220, 225], np.float32), np.array([90, 80, 160], np.float32)
PALETTE = Palette(
    drawn(WHITE, GUM, SOFT, lower=False),
    drawn(WHITE * np.float32(0.9), GUM, SOFT, lower=True),
    np.array([80, 75, 150], np.float32),
    np.array([20, 15, 40], np.float32),
    np.array([40, 38, 80], np.float32),
)
HALF = 0.26
APERTURES = (0.0, 0.004, 0.02, LOWER_HIDDEN, 0.06, 0.12, 0.25)


def opening(aperture: float, rounding: float = 0.0, across: int = 81, most: float = 0.3) -> Opening:
    """A parabola's opening, even on both sides: the upper lip goes up by a fifth of it, the lower one down by the rest."""
    u = np.broadcast_to(np.linspace(-most, most, across, dtype=np.float32), (across, across))
    v = np.broadcast_to(np.linspace(-0.1, 0.3, across, dtype=np.float32)[:, None], u.shape)
    apart = np.float32(aperture) * np.maximum(1 - (u / np.float32(HALF)) ** 2, 0)
    return Opening(u, v, v + np.float32(0.22) * apart, np.float32(0.78) * apart - v, rounding, aperture)


def bare(row: Row) -> Row:
    """The row without its teeth."""
    return Row(row.tile * np.array([1, 1, 1, 0], np.float32))


def lightness(colour: Floats) -> Floats:
    """Luminance `[h, w]` of planes `[3, h, w]`."""
    return np.asarray(np.tensordot(GREY, colour, 1), np.float32)


@pytest.mark.parametrize("rounding", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("aperture", APERTURES)
def test_colours_are_levels_and_alike_on_both_sides(aperture: float, rounding: float) -> None:
    made = paint(opening(aperture, rounding), PALETTE)
    assert made.shape == (3, 81, 81) and made.dtype == np.float32
    assert made.min() >= 0 and made.max() <= 255
    assert np.abs(made - made[:, :, ::-1]).max() < 0.5


@pytest.mark.parametrize("across", [9, 40, 201])
def test_a_face_of_any_size_has_the_same_inside(across: int) -> None:
    fine, coarse = paint(opening(0.12, across=401), PALETTE), paint(opening(0.12, across=across), PALETTE)
    step = 400 // (across - 1) if 400 % (across - 1) == 0 else None
    if step is None:  # places of the two differ: their means do not
        assert np.abs(fine.mean((1, 2)) - coarse.mean((1, 2))).max() < 2
    else:
        assert np.abs(fine[:, ::step, ::step] - coarse).max() < 0.5


@pytest.mark.parametrize("aperture", APERTURES)
def test_upper_teeth_end_at_their_edge_and_lower_teeth_begin_at_theirs(aperture: float) -> None:
    """Each row changes pixels on its own side of its edge only, 0.02 eye distances of blur allowed."""
    place = opening(aperture)
    made = paint(place, PALETTE)
    upper = np.abs(made - paint(place, replace(PALETTE, upper=bare(PALETTE.upper)))).max(0) > 1
    lower = np.abs(made - paint(place, replace(PALETTE, lower=bare(PALETTE.lower)))).max(0) > 1
    assert not upper[place.v > UPPER_EDGE + 0.02].any()
    assert not lower[place.v < LOWER_EDGE + LOWER_SHARE * aperture - 0.02].any()
    assert lower.any() == (aperture > LOWER_HIDDEN)


@pytest.mark.parametrize("aperture", [0.06, 0.12, 0.25])
def test_down_the_middle_come_teeth_the_dark_and_in_wide_openings_teeth_again(aperture: float) -> None:
    place = opening(aperture)
    column = 40
    inside = (place.below[:, column] > 0.012) & (place.above[:, column] > 0.012)
    lit, v = lightness(paint(place, PALETTE))[inside, column + 3], place.v[inside, column]
    teeth, between = lit[v < UPPER_EDGE - 0.01], lit[(v > UPPER_EDGE + 0.015) & (v < LOWER_EDGE + 0.4 * aperture)]
    assert teeth.mean() > 100
    if aperture > 0.1:
        assert between.min() < 0.5 * teeth.mean()
    if aperture > 0.2:  # below that the lower lip covers them here
        assert lit[v > LOWER_EDGE + LOWER_SHARE * aperture + 0.01].max() > 1.3 * between.min()


def test_rounded_lips_hide_the_upper_teeth_by_degrees() -> None:
    lit = [lightness(paint(opening(0.06, rounding), PALETTE)) for rounding in (0.0, 0.5, 1.0)]
    teeth = lit[0] > 120
    assert teeth.any()
    means = [float(one[teeth].mean()) for one in lit]
    assert means[0] > means[1] + 10 > means[2] + 20


def test_the_upper_lip_shades_the_teeth_under_it() -> None:
    """The same tooth, at the same place: the nearer the lip comes, the darker it is."""
    place = opening(0.12)
    lit = []
    for below in (0.0, 0.005, 0.011, 0.022, 0.05):
        level = np.full_like(place.u, below)
        lit.append(float(lightness(paint(replace(place, below=level, above=level + 0.05), PALETTE))[24, 43]))
    assert lit == sorted(lit) and lit[0] < 0.6 * lit[-1]
    assert lit[-1] == pytest.approx(lit[-2], rel=0.03)


def test_the_corners_are_the_lips_own_shadow_and_no_teeth() -> None:
    """Where the lips' edges meet, nothing of the inside is seen, however wide the middle is."""
    place = opening(0.25)
    nowhere = np.zeros_like(place.u)
    ends = [
        paint(replace(place, below=nowhere, above=nowhere), replace(PALETTE, line=np.full(3, level, np.float32)))
        for level in (0, 255)
    ]
    assert np.abs(ends[1] - ends[0] - 0.8 * 0.75 * 255).max() < 0.1, "four fifths of it, in the shade of both lips"
    wide = [paint(place, replace(PALETTE, line=np.full(3, level, np.float32))) for level in (0, 255)]
    assert not (wide[1] - wide[0])[:, place.below + place.above > 0.036].any()


@given(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.floats(0.004, 0.1))
def test_the_line_lies_where_both_lips_edges_are_and_nowhere_else(below: float, above: float, soft: float) -> None:
    def line(a: float, b: float) -> float:
        return float(shadow_line(np.array([a], np.float32), np.array([b], np.float32), soft)[0])

    value = line(below, above)
    assert 0 <= value <= 1
    assert value == line(above, below) == line(-below, above)
    if max(abs(below), abs(above)) >= 0.0121 + soft:
        assert value == 0
    assert value <= line(below / 2, above / 2) + 1e-6
    assert line(0, 0) == 1


def test_the_line_is_wider_where_the_picture_is_softer() -> None:
    away = np.linspace(-0.05, 0.05, 101, dtype=np.float32)
    sharp, soft = shadow_line(away, away, 0.008), shadow_line(away, away, 0.03)
    assert (soft >= sharp).all() and np.count_nonzero(soft) > 1.5 * np.count_nonzero(sharp)
    assert away[np.argmax(sharp)] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("eyes", "half_a_blur"), [(10, 0.08), (25, 0.032), (80, 0.01), (100, 0.008), (270, 0.008), (1000, 0.008)]
)
def test_edges_are_at_least_a_pixel_and_a_half_wide_and_never_sharper_than_skin(
    eyes: float, half_a_blur: float
) -> None:
    assert softness(eyes) == pytest.approx(half_a_blur)
