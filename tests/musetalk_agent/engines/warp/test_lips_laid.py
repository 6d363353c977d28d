"""Lips as they are laid over a frame: whose colours they have, what is seen between them, and where they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.engines.warp.artefacts import WarpArtefacts
from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.engines.warp.field import Field, Lattice
from musetalk_agent.engines.warp.frame_target import FrameTarget
from musetalk_agent.engines.warp.interior import Palette, Row, softness
from musetalk_agent.engines.warp.light import LIGHT_AREA, LIGHT_COLS, LIGHT_ROWS, LIGHT_SEEN
from musetalk_agent.engines.warp.mouth_space import IL, IU, OL, OU, SAMPLES, Floats
from musetalk_agent.engines.warp.render import Lips, lent_shape, lips_over
from musetalk_agent.media_types import Box
from tests.musetalk_agent.engines.warp import faces

REST = Articulation(0, 0, 0, 0, 0)
A, O, E, PRESSED = (  # noqa: E741 - the vowel
    Articulation(1, 0, 0, 0, 0),
    Articulation(0.6, -0.5, 1, 0, 0),
    Articulation(0.3, 1, 0, 0, 0),
    Articulation(1, 0, 0, 1, 0),
)
GREEN = np.array([0, 255, 0], np.float32)
SIZES = (128, 256, 512, 1080)


@dataclass(frozen=True)
class Mouth:
    """One shot of a drawn face, and the lips laid over a plain ground."""

    target: FrameTarget
    box: Box
    lips: Lips

    def laid(self, ground: float = 0.0, **changed: object) -> Floats:
        """The box's pixels, float32 `[h, w, 3]`, of a ground of this level; `changed` are fields of the artefacts."""
        pixels = np.full((self.box.height, self.box.width, 3), ground, np.uint8)
        art: WarpArtefacts = replace(self.target.art, **changed)  # type: ignore[arg-type]  # names and types are the caller's
        replace(self.lips, target=replace(self.target, art=art)).lay(pixels)
        return pixels.astype(np.float32)

    def places(self) -> tuple[Floats, Floats]:
        """Mouth space of the box's pixels."""
        x = np.arange(self.box.x0, self.box.x1, dtype=np.float32)[None]
        return self.target.places(x, np.arange(self.box.y0, self.box.y1, dtype=np.float32)[:, None])

    def levels(self, level: int) -> Floats:
        """The target's `v` of one of its curves, per pixel `[h, w]`."""
        u, _ = self.places()
        places = self.target.mouth.places
        return np.interp(u.ravel(), places, self.target.mouth.curves[level]).reshape(u.shape).astype(np.float32)


Maker = Callable[..., Mouth]


def closed_points(size: int, eyes: float | None = None) -> faces.Points:
    points = faces.placed(faces.demo_points(), (0.5 * size, 0.58 * size), eyes or size / 4)
    down = points[14] - points[13]
    for index in faces.INNER_LOWER[1:-1]:
        points[index] -= down
    return points


def over(target: FrameTarget, box: Box) -> Lips | None:
    """The lips over `box`, as `render` asks for them."""
    lattice = Lattice.over(box, target.frame, max(2, round(0.025 * target.eyes)))
    (field,) = Field.between((lent_shape(target),), target.mouth, lattice, target.art.top, target.sides)
    return lips_over(target, box, lattice, field)


@pytest.fixture(scope="module")
def mouth(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes mouths; the face of a size is prepared once."""
    sessions = {}

    def make(act: Articulation, size: int = 256, blend_weight: float = 1.0) -> Mouth:
        if size not in sessions:
            points = closed_points(size)
            folder: Path = tmp_path_factory.mktemp("face")
            sessions[size] = faces.opened_with(folder, [faces.drawn(points, (size, size))], [points])[1]
        session = sessions[size]
        target = FrameTarget.of(session.bundle, session.artefacts, 0, act, blend_weight)
        box = target.bounds(target.art.top - 0.02, 0.36, 0.66, session.bundle.box(0))
        assert box is not None
        lips = over(target, box)
        assert lips is not None
        return Mouth(target, box, lips)

    return make


def all_green(palette: Palette) -> Palette:
    """Everything inside green, as no lip is."""

    def row(one: Row) -> Row:
        return Row(np.concatenate([np.broadcast_to(GREEN, one.tile[..., :3].shape), one.tile[..., 3:]], -1))

    return replace(palette, upper=row(palette.upper), lower=row(palette.lower), tongue=GREEN, dark=GREEN)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("act", [REST, A, O, E], ids=["rest", "a", "o", "e"])
def test_nothing_of_the_inside_is_seen_outside_the_opening(mouth: Maker, act: Articulation, size: int) -> None:
    made = mouth(act, size)
    art = made.target.art
    changed = np.abs(made.laid(palette=all_green(art.palette)) - made.laid()).max(2) > 2
    u, v = made.places()
    soft = softness(made.target.eyes) + max(0.008, 1 / made.target.eyes)  # a third of a cell of the grid, or a pixel
    target = made.target.mouth
    outside = (v < made.levels(IU) - soft) | (v > made.levels(IL) + soft) | (np.abs(u - target.centre) > target.half)
    assert not (changed & outside).any()
    if act is REST:
        assert not changed.any()
    else:
        assert changed.sum() > made.target.gap * made.target.eyes**2 * target.half


def test_pressed_lips_show_nothing_of_the_inside_though_the_jaw_is_down(mouth: Maker) -> None:
    made = mouth(PRESSED)
    assert made.target.gap == 0
    assert np.array_equal(made.laid(palette=all_green(made.target.art.palette)), made.laid())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("act", [REST, A, O, E], ids=["rest", "a", "o", "e"])
def test_lips_keep_their_colour_whatever_the_mouth_does(mouth: Maker, act: Articulation, size: int) -> None:
    made = mouth(act, size)
    pixels = made.laid()
    u, v = made.places()
    target = made.target.mouth
    middle = np.abs(u - target.centre) < 0.4 * target.half
    for outer, inner in ((OU, IU), (OL, IL)):
        share = (v - made.levels(outer)) / (made.levels(inner) - made.levels(outer))
        lip = middle & (share > 0.35) & (share < 0.6)
        if lip.sum() >= 5:
            assert np.abs(np.median(pixels[lip], 0) - faces.LIP).max() <= 8


@pytest.mark.parametrize("size", SIZES)
def test_what_is_laid_lies_in_its_box_and_is_no_darker_than_black_nor_brighter_than_white(
    mouth: Maker, size: int
) -> None:
    made = mouth(A, size)
    box, part = made.box, made.lips.part
    assert box.x0 <= part.x0 < part.x1 <= box.x1 and box.y0 <= part.y0 < part.y1 <= box.y1
    black, white = made.laid(0.0), made.laid(255.0)
    cover = 1 - (white - black) / 255
    assert cover.min() > -1e-3 and cover.max() < 1 + 1e-3
    outside = np.ones(cover.shape[:2], bool)
    outside[part.y0 - box.y0 : part.y1 - box.y0, part.x0 - box.x0 : part.x1 - box.x0] = False
    assert not black[outside].any()
    row = round((made.target.frame @ [made.target.mouth.centre, float(made.levels(OU).min()), 1])[1]) - box.y0
    assert cover[min(row + 3, box.height - 1), box.width // 2].min() > 0.95, "on the lips the reference has taken over"
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        assert cover[edge].max() < 0.02


def test_the_lips_come_in_with_the_blend_weight(mouth: Maker) -> None:
    """None of the reference at 0, half of it at 0.25, all of it from 0.5 on."""
    made = mouth(REST)
    shares = []
    for blend_weight in (0.0, 0.25, 0.5, 1.0):
        one = replace(made, lips=replace(made.lips, target=replace(made.target, blend_weight=blend_weight)))
        one = replace(one, target=one.lips.target)
        shares.append(1 - (one.laid(255.0) - one.laid(0.0)) / 255)
    assert np.abs(shares[0]).max() < 1e-4
    assert np.abs(2 * shares[1] - shares[3]).max() < 4 / 255
    assert np.array_equal(shares[2], shares[3])


@pytest.mark.parametrize("times", [1.2, 0.8])
def test_lips_are_as_many_times_as_bright_as_the_pose_is(mouth: Maker, times: float) -> None:
    made = mouth(REST)
    plain = np.ones((1, LIGHT_ROWS, LIGHT_COLS, 3), np.float32)
    lips = made.laid(light=plain)
    change = made.laid(light=plain * np.float32(times)) - lips
    _, v = made.places()
    apart = (v < made.levels(IU) - 0.05) | (v > made.levels(IL) + 0.05)
    wanted = np.minimum(np.float32(times) * lips, 255) - lips
    assert apart.any() and lips[apart].max() > 100
    covered = (made.laid(255.0) - made.laid(0.0)).max(2) < 1
    assert np.abs(change - wanted)[apart & covered].max() < 2.1, "levels are whole ones"


def test_light_of_one_side_falls_on_that_side(mouth: Maker) -> None:
    """A slope of light across the face is the same slope on the lips, and each colour has its own."""
    made = mouth(REST)
    u0, u1, v0, v1 = LIGHT_AREA
    across = np.linspace(u0, u1, LIGHT_COLS, dtype=np.float32)[None, :, None]
    down = np.linspace(v0, v1, LIGHT_ROWS, dtype=np.float32)[:, None, None]
    light = (1 + across * np.array([0.3, 0, -0.2], np.float32) + down * np.array([0, 0.1, 0], np.float32))[None]
    lips = made.laid(light=np.ones_like(light))
    change = made.laid(light=light) - lips
    u, v = made.places()
    apart = (v < made.levels(IU) - 0.05) | (v > made.levels(IL) + 0.05)
    wanted = lips * np.stack([0.3 * u, 0.1 * v, -0.2 * u], -1)
    assert np.abs(wanted)[apart].max() > 5
    assert np.abs(change - wanted)[apart].max() < 1.6


def test_a_difference_of_light_that_is_not_seen_changes_nothing(mouth: Maker) -> None:
    made = mouth(A)
    plain = np.ones((1, LIGHT_ROWS, LIGHT_COLS, 3), np.float32)
    assert np.array_equal(made.laid(light=plain + np.float32(0.9 * LIGHT_SEEN)), made.laid(light=plain))


def test_the_line_between_closed_lips_has_the_colour_of_the_palette(mouth: Maker) -> None:
    """It is darkened where the lips were cut apart to open; here they open a little and hide no more than the line."""
    made = mouth(Articulation(0.05, 0, 0, 0, 0))
    dark, bright = (
        made.laid(palette=replace(made.target.art.palette, line=np.full(3, level, np.float32))) for level in (0, 255)
    )
    changed = (bright - dark).max(2) > 2
    _, v = made.places()
    near = 0.012 + softness(made.target.eyes) + 2 / made.target.eyes
    assert not (changed & ((v < made.levels(IU) - near) | (v > made.levels(IL) + near))).any()


def test_no_lips_are_laid_where_the_box_has_no_mouth(mouth: Maker) -> None:
    made = mouth(A)
    forehead = Box(made.box.x0, 0, made.box.x1, 20)
    assert over(made.target, forehead) is None


def test_lips_end_at_the_face_s_outline(mouth: Maker) -> None:
    """In a face whose right half ends at the mouth's middle nothing is laid beyond it."""
    made = mouth(A)
    sides = np.array([[0.7, 0.1]], np.float32)
    target = replace(made.target, art=replace(made.target.art, sides=sides))
    lips = over(target, made.box)
    assert lips is not None
    cut = Mouth(target, made.box, lips)
    u, _ = cut.places()
    cover = (1 - (cut.laid(255.0) - cut.laid(0.0)) / 255).max(2)
    away = u - target.mouth.centre
    assert cover[away > 0.1 + 0.03].max() < 0.02
    assert cover[(away < 0) & (away > -0.1)].max() > 0.99


def test_the_shape_that_is_lent_is_cut_open_as_far_as_it_is_shown(mouth: Maker) -> None:
    gaps = [lent_shape(mouth(act).target).opening for act in (REST, E, A)]
    assert gaps[0] <= gaps[1] <= gaps[2]
    curves = lent_shape(mouth(A).target).curves
    assert (np.diff(curves[:, SAMPLES // 2]) >= 0).all()
