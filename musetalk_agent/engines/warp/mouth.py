"""The reference frame's lips in the target's shape, with the inside of the mouth between them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from musetalk_agent.engines.warp.articulation import opened
from musetalk_agent.engines.warp.field import Field, Lattice, Nodes, ramp
from musetalk_agent.engines.warp.geometry import CHIN, IL, IU, OL, OU, SAMPLES, Floats, smooth, unit
from musetalk_agent.engines.warp.interior import Opening, paint, shadow_line, softness
from musetalk_agent.engines.warp.lent import FINER
from musetalk_agent.engines.warp.light import LIGHT_AREA, LIGHT_COLS, LIGHT_ROWS
from musetalk_agent.engines.warp.shot import Shot
from musetalk_agent.media import Box

CELL = 0.016
"""Lattice cells of the lips (eye distances)."""
SIDES = 2.0
"""How far the lips' box reaches to each side, in halves of the mouth's width."""
OWN_TEXTURE = 0.5
"""Presence at which the reference's lips have taken over from the idle frame's."""
BESIDE = 1.20, 1.65
"""From where to where, in halves of the mouth beside its middle, lips fade into the idle frame's own pixels."""
OUTLINE_SOFT = 0.06
"""How far from the face's outline lips begin to fade into the idle frame's own pixels (eye distances)."""
LIGHT_SEEN = 0.5
"""Differences of light up to this many levels are not laid on."""


@dataclass(frozen=True)
class Lips:
    """What the lips' pixels are made from: float32 `[rows, cols]` at the nodes of `lattice`.

    Args:
        box: the whole patch.
        shown: the nodes at which something of the lips is shown.
        x, y: where each place's pixel is in the reference's enlarged picture, taken to lie on the upper side.
        split: how much further down (eye distances) it is if on the lower side.
        lower: positive on the lower side.
        cover: how much of the reference is shown, 0 … 1.
        under, over: distance below the upper and above the lower lip's edge.
        corner: distance from the nearer corner in halves of the mouth.
    """

    shot: Shot
    box: Box
    lattice: Lattice
    shown: Nodes
    x: Floats
    y: Floats
    split: Floats
    lower: Floats
    cover: Floats
    under: Floats
    over: Floats
    corner: Floats

    def lay(self, pixels: Floats) -> None:
        """Blends the lips into `pixels` (BGR of the patch, float32 `[h, w, 3]`) in place."""
        part = self.lattice.part(self.shown)
        drawn = self._reference(part)
        self._inside(drawn, part)
        share = self.lattice.enlarge(self.cover, self.shown) * np.float32(min(self.shot.presence / OWN_TEXTURE, 1.0))
        place = _within(part, self.box)
        pixels[place] = cv2.blendLinear(drawn, pixels[place], share, 1 - share)

    def _reference(self, part: Box) -> Floats:
        """The reference's pixels over `part`, in the pose's light."""
        art, lattice, shown = self.shot.art, self.lattice, self.shown
        to = art.frames[self.shot.reference] * np.float32(FINER)
        x, y, split, lower = (lattice.enlarge(plane, shown) for plane in (self.x, self.y, self.split, self.lower))
        further = cv2.multiply(cv2.threshold(lower, 0, 1, cv2.THRESH_BINARY)[1], split)
        map_x, map_y = cv2.scaleAdd(further, float(to[0, 1]), x), cv2.scaleAdd(further, float(to[1, 1]), y)
        seen = cv2.remap(self.shot.lent.pixels, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        lips = np.asarray(seen, np.float32)
        light = art.light[self.shot.pose]
        if max(float(light.max()), -float(light.min())) < LIGHT_SEEN:
            return lips
        u0, u1, v0, v1 = LIGHT_AREA
        u, v = self.shot.places(*lattice.positions())
        x = (u - np.float32(u0)) * np.float32((LIGHT_COLS - 1) / (u1 - u0))
        y = (v - np.float32(v0)) * np.float32((LIGHT_ROWS - 1) / (v1 - v0))
        added = cv2.remap(light, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        lips += lattice.enlarge(np.asarray(added, np.float32), shown)
        return lips

    def _inside(self, lips: Floats, part: Box) -> None:
        """Paints the inside where the lips are apart, and the line where they meet, into `lips` in place."""
        shot, lattice = self.shot, self.lattice
        art, soft = shot.art, softness(shot.eyes)
        seen = (self.under > -soft) & (self.over > -soft) & (self.corner > 0)
        nodes = _spread(seen, self.shown)
        if nodes is None:
            return
        area = lattice.part(nodes)
        under, over, corner = (lattice.enlarge(plane, nodes) for plane in (self.under, self.over, self.corner))
        x = np.arange(area.x0, area.x1, dtype=np.float32)[None]
        y = np.arange(area.y0, area.y1, dtype=np.float32)[:, None]
        u, v = shot.places(x, y)
        place = lips[_within(area, part)]
        meeting = shadow_line(under, over, soft)
        meeting *= unit(np.float32(1) - (under + over) * np.float32(1 / 0.03))
        cut = float((shot.shape.curves[IL] - shot.shape.curves[IU]).max())
        # what was cut out took the line's own shadow with it, and left mixed pixels
        seam = 3 if cut < 0.03 else 2 * round(0.5 + 0.012 * shot.eyes) + 1
        place[:] = cv2.blendLinear(cv2.blur(place, (1, seam)), place, meeting, 1 - meeting)
        shadow = meeting * unit(corner * np.float32(1 / 0.25))
        shadow *= np.float32(0.4 * min(cut / 0.03, 1.0))
        kept = np.float32(1) - shadow
        line = art.palette.line[:, None, None]
        if shot.gap > 0:
            middle = float(shot.rest.curves[IU][SAMPLES // 2])
            u -= np.float32(shot.target.centre)
            v -= np.float32(middle)
            cover = unit(under * np.float32(0.5 / soft) + np.float32(0.5))
            cover *= unit(over * np.float32(0.5 / soft) + np.float32(0.5))
            cover *= unit(corner * np.float32(1 / 0.15))
            cover *= np.float32(min(shot.gap / 0.012, 1.0))
            added = paint(Opening(u, v, under, over, shot.act.rounding, shot.gap), art.palette)
            added *= cover
            uncovered = np.float32(1) - cover
            kept *= uncovered
            uncovered *= shadow
            added += line * uncovered
        else:
            added = line * shadow
        place *= cv2.merge((kept, kept, kept))
        place += cv2.merge(tuple(added))


def lips_over(shot: Shot, box: Box) -> Lips | None:
    """The lips within `box`. None where they are outside the picture."""
    bounds = shot.bounds(shot.art.top, 0.0, SIDES * shot.target.half, box)
    if bounds is None:
        return None
    art, to, lent = shot.art, shot.art.frames[shot.reference], shot.lent
    lattice = Lattice.over(bounds, shot.frame, max(2, round(CELL * shot.eyes)))
    field = Field.between(opened(shot.shape, shot.gap), shot.target, lattice, art.top, shot.sides)
    (a, b, c), (d, e, f) = (to * np.float32(FINER)).tolist()
    source_u = lattice.u + field.du
    source_v = lattice.v + field.upper
    maps, edges = (np.empty((*source_u.shape, 4), np.float32) for _ in range(2))
    shift_x, shift_y = lent.offset
    np.add(source_u * np.float32(a) + np.float32(c + shift_x), source_v * np.float32(b), out=maps[..., 0])
    np.add(source_u * np.float32(d) + np.float32(f + shift_y), source_v * np.float32(e), out=maps[..., 1])
    np.subtract(field.lower, field.upper, out=maps[..., 2])
    maps[..., 3] = _cover(shot, field, lattice, source_u)
    np.subtract(lattice.v, field.levels[IU + 1], out=edges[..., 0])
    np.subtract(field.levels[IL + 1], lattice.v, out=edges[..., 1])
    edges[..., 2] = 1 - np.abs(field.s)
    np.subtract(edges[..., 0], edges[..., 1], out=edges[..., 3])
    x, y, split, cover = (np.asarray(plane, np.float32) for plane in cv2.split(lattice.turned(maps)))
    under, over, corner, lower = (np.asarray(plane, np.float32) for plane in cv2.split(lattice.turned(edges)))
    shown = _spread(cover > 0, lattice.whole())
    if shown is None:
        return None
    return Lips(shot, box, lattice, shown, x, y, split, lower, cover, under, over, corner)


def _cover(shot: Shot, field: Field, lattice: Lattice, source_u: Floats) -> Floats:
    """How much of the reference is shown: all of it on the lips, none half way to chin, nose and cheek, none beyond the outline."""
    top, ou, ol, chin = (field.levels[k] for k in (0, OU + 1, OL + 1, CHIN + 1))
    quarter, two = np.float32(0.25), np.float32(2)
    cover: Floats = ramp(lattice.v, top + quarter * (ou - top), two / (ou - top))
    cover *= ramp(-lattice.v, -(ol + np.float32(0.8) * (chin - ol)), two / (chin - ol))
    cover *= np.interp(np.abs(field.s), BESIDE, (1, 0)).astype(np.float32)
    smooth(cover)
    cover *= _on_face(lattice.u - np.float32(shot.target.centre), shot.sides)
    cover *= _on_face(source_u - np.float32(shot.shape.centre), shot.lent_sides)
    return cover


def _on_face(away: Floats, sides: tuple[float, float]) -> Floats:
    """1 on the face, 0 beyond its outline, which is `sides` to the left and right of the mouth's middle."""
    left, right = sides
    return unit(np.minimum(away + np.float32(left), np.float32(right) - away) * np.float32(1 / OUTLINE_SOFT))


def _within(box: Box, around: Box) -> tuple[slice, slice]:
    """Rows and columns of `box` in pixels of `around`."""
    return slice(box.y0 - around.y0, box.y1 - around.y0), slice(box.x0 - around.x0, box.x1 - around.x0)


def _spread(seen: np.ndarray, within: Nodes) -> Nodes | None:
    """The least block of nodes that holds all that are `seen` (bool `[rows, cols]`) and those beside them; None for none."""
    left, above, width, height = cv2.boundingRect(seen.view(np.uint8))
    if width == 0:
        return None
    r0, r1 = max(above - 1, within.r0), min(above + height + 1, within.r1)
    c0, c1 = max(left - 1, within.c0), min(left + width + 1, within.c1)
    return Nodes(r0, r1, c0, c1) if r0 < r1 and c0 < c1 else None
