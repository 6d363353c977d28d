"""The reference frame's lips in the target's shape, with the inside of the mouth between them."""

from __future__ import annotations

import cv2
import numpy as np

from musetalk_agent.engines.warp.articulation import opened
from musetalk_agent.engines.warp.field import Field, Lattice
from musetalk_agent.engines.warp.geometry import CHIN, IL, IU, OL, OU, SAMPLES, Floats
from musetalk_agent.engines.warp.interior import Opening, paint, shadow_line, softness
from musetalk_agent.engines.warp.light import LIGHT_AREA, LIGHT_COLS, LIGHT_ROWS
from musetalk_agent.engines.warp.shot import Shot, fetch
from musetalk_agent.media import Box, Pixels

CELL = 0.016
"""Lattice cells of the lips (eye distances)."""
SIDES = 2.0
"""How far the lips' box reaches to each side, in halves of the mouth's width."""
OWN_TEXTURE = 0.5
"""Presence at which the reference's lips have taken over from the idle frame's."""
OUTLINE_SOFT = 0.06
"""How far from the face's outline lips begin to fade into the idle frame's own pixels (eye distances)."""
X, Y, SPLIT, UNDER, OVER, COVER, CORNER, U, V = range(9)


def lay_lips(shot: Shot, box: Box, pixels: Pixels) -> None:
    """Blends the lips into `pixels` (BGR of `box`) in place. Nothing happens where they are outside the picture."""
    lips = shot.bounds(shot.art.top, 0.0, SIDES * shot.target.half, box)
    if lips is None:
        return
    fields = _fields(shot, lips)
    drawn = _reference(shot, lips, fields)
    _inside(shot, drawn, fields)
    share = fields[..., COVER] * min(shot.presence / OWN_TEXTURE, 1.0)
    below = pixels[lips.y0 - box.y0 : lips.y1 - box.y0, lips.x0 - box.x0 : lips.x1 - box.x0]
    below[:] = cv2.blendLinear(drawn, np.ascontiguousarray(below), share, 1 - share)


def _fields(shot: Shot, box: Box) -> Floats:
    """For each pixel of `box`, float32 `[h, w, 9]`.

    X, Y: its shift into the reference's picture, taken to lie on the upper side; SPLIT: how much further down (eye
    distances) if on the lower side; UNDER, OVER: its distance below the upper and above the lower lip's edge; COVER: how
    much of the reference is shown; CORNER: distance from the nearer corner in halves of the mouth; U, V: its place in
    mouth space.
    """
    art, to = shot.art, shot.art.frames[shot.reference]
    lattice = Lattice.over(box, shot.frame, max(1.5, CELL * shot.eyes))
    field = Field.between(opened(shot.shape, shot.gap), shot.target, lattice, art.top, shot.sides)
    u, v = lattice.u + field.du, lattice.v + field.upper
    x, y = lattice.positions()
    nodes = np.empty((*u.shape, 9), np.float32)
    nodes[..., X] = to[0, 0] * u + to[0, 1] * v + to[0, 2] - x
    nodes[..., Y] = to[1, 0] * u + to[1, 1] * v + to[1, 2] - y
    nodes[..., SPLIT] = field.lower - field.upper
    nodes[..., UNDER] = lattice.v - field.levels[IU + 1]
    nodes[..., OVER] = field.levels[IL + 1] - lattice.v
    nodes[..., COVER] = _cover(field, lattice)
    for middle, at, sides in ((shot.target.centre, lattice.u, shot.sides), (shot.shape.centre, u, shot.lent_sides)):
        nodes[..., COVER] *= _on_face(at - middle, sides)
    nodes[..., CORNER] = 1 - np.abs(field.s)
    nodes[..., U] = lattice.u
    nodes[..., V] = lattice.v
    return lattice.enlarge(nodes)


def _cover(field: Field, lattice: Lattice) -> Floats:
    """How much of the reference is shown at each node: all of it on the lips, none half way to chin, nose and cheek."""
    top, ou, ol, chin = (field.levels[k] for k in (0, OU + 1, OL + 1, CHIN + 1))
    above = np.clip((lattice.v - (top + 0.25 * (ou - top))) / (0.5 * (ou - top)), 0, 1)
    under = np.clip((ol + 0.8 * (chin - ol) - lattice.v) / (0.5 * (chin - ol)), 0, 1)
    beside = np.clip((1.65 - np.abs(field.s)) / 0.45, 0, 1)
    cover = above * under * beside
    return np.asarray(cover * cover * (3 - 2 * cover), np.float32)


def _on_face(away: Floats, sides: tuple[float, float]) -> Floats:
    """1 on the face, 0 beyond its outline, which is `sides` to the left and right of the mouth's middle."""
    left, right = sides
    return np.asarray(np.clip(np.minimum(left + away, right - away) / OUTLINE_SOFT, 0, 1), np.float32)


def _reference(shot: Shot, box: Box, fields: Floats) -> Pixels:
    """The reference's pixels over `box`, in the pose's light."""
    art = shot.art
    to, window = art.frames[shot.reference], shot.bundle.box(shot.reference)
    further = np.where(fields[..., UNDER] > fields[..., OVER], fields[..., SPLIT], np.float32(0))
    shift = np.stack([fields[..., X] + further * to[0, 1], fields[..., Y] + further * to[1, 1]], -1)
    lips = fetch(np.asarray(shot.bundle.faces[shot.reference]), shift, box.x0 - window.x0, box.y0 - window.y0)
    light = art.light[shot.pose]
    if float(np.abs(light).max()) < 0.5:
        return lips
    u0, u1, v0, v1 = LIGHT_AREA
    x = (fields[::4, ::4, U] - u0) * ((LIGHT_COLS - 1) / (u1 - u0))
    y = (fields[::4, ::4, V] - v0) * ((LIGHT_ROWS - 1) / (v1 - v0))
    small = cv2.remap(light, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    added = cv2.resize(small, (box.width, box.height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.add(lips, added, dtype=cv2.CV_8U), np.uint8)


def _inside(shot: Shot, lips: Pixels, fields: Floats) -> None:
    """Paints the inside where the lips are apart, and the line where they meet, into `lips` in place."""
    art, soft = shot.art, softness(shot.eyes)
    seen = (fields[..., UNDER] > -soft) & (fields[..., OVER] > -soft) & (fields[..., CORNER] > 0)
    rows, cols = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not rows.size:
        return
    area = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
    place = fields[area]
    under, over = place[..., UNDER], place[..., OVER]
    part = lips[area].astype(np.float32)
    meeting = shadow_line(under, over, soft) * (1 - np.clip((under + over) / 0.03, 0, 1))
    cut = shot.shape.curves[IL] - shot.shape.curves[IU]  # what was cut out took the line's own shadow with it
    seam = 3 if float(cut.max()) < 0.03 else 2 * round(0.5 + 0.012 * shot.eyes) + 1  # and left an edge of mixed pixels
    part += (cv2.blur(part, (1, seam)) - part) * meeting[..., None]
    shadow = meeting * np.clip(place[..., CORNER] / 0.25, 0, 1) * (0.4 * min(float(cut.max()) / 0.03, 1.0))
    part += (art.palette.line - part) * shadow[..., None]
    line = float(shot.rest.curves[IU][SAMPLES // 2])
    opening = Opening(
        place[..., U] - shot.target.centre, place[..., V] - line, under, over, shot.act.rounding, shot.gap
    )
    cover = np.clip(under / (2 * soft) + 0.5, 0, 1) * np.clip(over / (2 * soft) + 0.5, 0, 1)
    cover *= np.clip(place[..., CORNER] / 0.15, 0, 1) * min(shot.gap / 0.012, 1.0)
    part += (paint(opening, art.palette) - part) * cover[..., None]
    lips[area] = np.clip(part + 0.5, 0, 255)
