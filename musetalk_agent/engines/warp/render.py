"""One patch: the idle frame deformed, the reference's lips laid over it, and the inside of the mouth between them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.artefacts import LIGHT_AREA, LIGHT_COLS, LIGHT_ROWS, Artefacts
from musetalk_agent.engines.warp.articulation import Articulation, driven
from musetalk_agent.engines.warp.field import Columns, Lattice, displacement, through
from musetalk_agent.engines.warp.geometry import CHIN, IL, IU, NECK, OL, OU, REACH, SAMPLES, Floats, Shape
from musetalk_agent.engines.warp.interior import Opening, paint, shadow_line
from musetalk_agent.media import Box, Patch, Pixels

COARSE, FINE = 0.035, 0.016
"""Lattice cells of the whole patch and of the lips (eye distances)."""
SOFT = 0.008
"""Half the blur of the lips' edges (eye distances): skin has no sharper ones, and cameras none at all."""
OWN_TEXTURE = 0.5
"""Presence at which the reference's lips have taken over from the idle frame's."""


@dataclass(frozen=True)
class Layer:
    """Pixels of one source deformed over a box, and the target's columns there."""

    lattice: Lattice
    columns: Columns
    pixels: Floats


def render(bundle: Bundle, art: Artefacts, pose: int, act: Articulation, presence: float) -> Patch | None:
    """The patch of idle frame `pose` for articulation `act`; None where the mouth is outside the picture."""
    window, frame = bundle.box(pose), art.frames[pose]
    target = art.poses[pose].towards(driven(art.rest, act), presence)
    box = _bounds(frame, target, (art.top - 0.02, NECK + 0.02), REACH, window, (bundle.width, bundle.height))
    if box is None:
        return None
    eyes = float(np.sqrt(abs(np.linalg.det(frame[:, :2]))))
    pixels = _skin(bundle, art, pose, target, box, eyes)
    lips = _bounds(frame, target, (art.top, 0.0), 2.0 * target.half, box, (bundle.width, bundle.height))
    if lips is not None:
        inner = pixels[lips.y0 - box.y0 : lips.y1 - box.y0, lips.x0 - box.x0 : lips.x1 - box.x0]
        inner[:] = _lips(bundle, art, pose, target, act, presence, lips, eyes, inner)
    return Patch(box, pixels)


def _bounds(
    frame: Floats, shape: Shape, vertical: tuple[float, float], reach: float, within: Box, size: tuple[int, int]
) -> Box | None:
    """The even box of pixels around a rectangle of mouth space (from `v` top to the chin plus a margin), cut to `within`."""
    chin = float(shape.curves[CHIN][SAMPLES // 2]) + vertical[1]
    corners = np.array([(shape.centre + side * reach, v) for side in (-1, 1) for v in (vertical[0], chin)], np.float32)
    pixels = corners @ frame[:, :2].T + frame[:, 2]
    low, high = np.floor(pixels.min(0)), np.ceil(pixels.max(0))
    # Inwards to even numbers: a patch may not reach beyond the window its pixels come from.
    x0, y0 = (int(-(-max(low[k], (within.x0, within.y0)[k]) // 2) * 2) for k in (0, 1))
    x1, y1 = (int(min(high[k], (within.x1, within.y1)[k], size[k]) // 2 * 2) for k in (0, 1))
    return Box(x0, y0, x1, y1) if x1 - x0 >= 4 and y1 - y0 >= 4 else None


def _remap(source: Pixels, origin: tuple[int, int], box: Box, shift: Floats) -> Pixels:
    """`source` (its corner at `origin` of the picture) sampled over `box`, each pixel shifted by `[h, w, 2]`."""
    shift[..., 0] += np.arange(box.x0 - origin[0], box.x1 - origin[0], dtype=np.float32)
    shift[..., 1] += np.arange(box.y0 - origin[1], box.y1 - origin[1], dtype=np.float32)[:, None]
    mapped = cv2.remap(source, shift, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    return np.asarray(mapped, np.uint8)


def _skin(bundle: Bundle, art: Artefacts, pose: int, target: Shape, box: Box, eyes: float) -> Pixels:
    """The idle frame itself, its own mouth and chin moved to where the target's are."""
    frame, window = art.frames[pose], bundle.box(pose)
    lattice = Lattice.over(box, frame, max(2.0, COARSE * eyes))
    columns = Columns.of(target, lattice, art.top)
    du, upper, lower = displacement(columns, art.poses[pose], target, lattice, art.top)
    dv = through(columns, upper, lower, lattice)
    ramp = _border(lattice, max(2.0, 0.08 * eyes))
    shift = np.stack([frame[0, 0] * du + frame[0, 1] * dv, frame[1, 0] * du + frame[1, 1] * dv], -1) * ramp
    return _remap(
        np.asarray(bundle.faces[pose]), (window.x0, window.y0), box, lattice.enlarge(shift.astype(np.float32))
    )


def _border(lattice: Lattice, width: float) -> Floats:
    """0 at the box's edge, 1 from `width` pixels inwards: `[rows, cols, 1]`."""
    rows, cols = lattice.u.shape
    box = lattice.box
    y = (np.arange(rows) + 0.5) * (box.height / rows)
    x = (np.arange(cols) + 0.5) * (box.width / cols)
    away_y = np.clip((np.minimum(y, box.height - y) - 0.5 * box.height / rows) / width, 0, 1)
    away_x = np.clip((np.minimum(x, box.width - x) - 0.5 * box.width / cols) / width, 0, 1)
    return (away_y[:, None] * away_x)[..., None].astype(np.float32)


def _lips(
    bundle: Bundle,
    art: Artefacts,
    pose: int,
    target: Shape,
    act: Articulation,
    presence: float,
    box: Box,
    eyes: float,
    below: Pixels,
) -> Pixels:
    """The reference's lips in the target's shape, blended over `below`, with what is seen between them."""
    lattice = Lattice.over(box, art.frames[pose], max(1.5, FINE * eyes))
    columns = Columns.of(target, lattice, art.top)
    du, upper, lower = displacement(columns, art.shape, target, lattice, art.top)
    window = bundle.box(art.reference)
    to = art.frames[art.reference]
    u, v = lattice.u + du, lattice.v
    x_up = to[0, 0] * u + to[0, 1] * (v + upper) + to[0, 2]
    y_up = to[1, 0] * u + to[1, 1] * (v + upper) + to[1, 2]
    split = lower - upper
    under = v - columns.levels[IU + 1]
    over = columns.levels[IL + 1] - v
    base = _nodes(lattice, window)
    fields = lattice.enlarge(
        np.stack(
            [x_up - base[0], y_up - base[1], split, under, over, _cover(columns, lattice), 1 - np.abs(columns.s)], -1
        ).astype(np.float32)
    )
    lower_side = fields[..., 3] > fields[..., 4]
    shift = fields[..., :2] + (lower_side * fields[..., 2])[..., None] * to[:, 1]
    lips = _remap(np.asarray(bundle.faces[art.reference]), (box.x0, box.y0), box, shift.astype(np.float32)).astype(
        np.float32
    )
    lips += _light_over(art, pose, lattice)
    soft = max(0.8 / eyes, SOFT)
    lips = _between(lips, fields[..., 3:], lattice, art, target, act, soft)
    alpha = fields[..., 5:6] * min(presence / OWN_TEXTURE, 1.0)
    return np.asarray(np.clip(below + alpha * (lips - below) + 0.5, 0, 255), np.uint8)


def _nodes(lattice: Lattice, window: Box) -> tuple[Floats, Floats]:
    """Pixel positions of the nodes, moved so that a shift from them is one within the reference's face window."""
    rows, cols = lattice.u.shape
    box = lattice.box
    x = (np.arange(cols) + 0.5) * (box.width / cols) - 0.5 + window.x0
    y = (np.arange(rows) + 0.5) * (box.height / rows) - 0.5 + window.y0
    return x.astype(np.float32)[None], y.astype(np.float32)[:, None]


def _cover(columns: Columns, lattice: Lattice) -> Floats:
    """How much of the reference is shown at each node: all of it on the lips, none from half way to chin, nose and cheek."""
    top, ou, ol, chin = (columns.levels[k] for k in (0, OU + 1, OL + 1, CHIN + 1))
    above = np.clip((lattice.v - (top + 0.25 * (ou - top))) / (0.5 * (ou - top)), 0, 1)
    under = np.clip((ol + 0.8 * (chin - ol) - lattice.v) / (0.5 * (chin - ol)), 0, 1)
    beside = np.clip((1.65 - np.abs(columns.s)) / 0.45, 0, 1)
    cover = above * under * beside
    return np.asarray(cover * cover * (3 - 2 * cover), np.float32)


def _light_over(art: Artefacts, pose: int, lattice: Lattice) -> Floats:
    """The pose's light less the reference's, for each pixel of the box `[h, w, 3]`."""
    u0, u1, v0, v1 = LIGHT_AREA
    x = (lattice.u - u0) * ((LIGHT_COLS - 1) / (u1 - u0))
    y = (lattice.v - v0) * ((LIGHT_ROWS - 1) / (v1 - v0))
    return lattice.enlarge(
        np.asarray(cv2.remap(art.light[pose], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    )


def _between(
    lips: Floats,
    fields: Floats,
    lattice: Lattice,
    art: Artefacts,
    target: Shape,
    act: Articulation,
    soft: float,
) -> Floats:
    """Paints the inside where the lips are apart, and the line where they meet."""
    gap = float((target.curves[IL] - target.curves[IU]).max())
    under, over, from_corner = fields[..., 0], fields[..., 1], fields[..., 3]
    inside = np.clip(under / (2 * soft) + 0.5, 0, 1) * np.clip(over / (2 * soft) + 0.5, 0, 1)
    near = np.flatnonzero((inside > 0).any(1))
    if not near.size:
        return lips
    rows = slice(int(near[0]), int(near[-1]) + 1)
    place = lattice.enlarge(np.stack([lattice.u, lattice.v], -1))[rows]
    line = float(art.rest.curves[IU][SAMPLES // 2])
    opening = Opening(
        place[..., 0] - target.centre, place[..., 1] - line, under[rows], over[rows], act.rounding, act.drop, gap, target.half
    )
    part = lips[rows]
    apart = np.clip((under[rows] + over[rows]) / 0.03, 0, 1)
    meeting = (shadow_line(under[rows], over[rows], soft) * (1 - apart))[..., None]
    part += (cv2.blur(part, (1, 3)) - part) * meeting
    shadow = meeting[..., 0] * np.clip(from_corner[rows] / 0.25, 0, 1)
    cut = art.shape.curves[IL] - art.shape.curves[IU]  # what was cut out took the line's own shadow with it
    shadow *= 0.4 * min(float(cut.max()) / 0.03, 1.0)
    part += (art.palette.line - part) * shadow[..., None]
    cover = inside[rows] * np.clip(from_corner[rows] / 0.15, 0, 1) * min(gap / 0.012, 1.0)
    part += (paint(opening, art.palette, soft) - part) * cover[..., None]
    return lips
