"""One patch: the idle frame deformed, the reference's lips laid over it, and the inside of the mouth between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.artefacts import WarpArtefacts
from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.engines.warp.enlarged import FINER_X, FINER_Y
from musetalk_agent.engines.warp.field import Field, Lattice, ramp
from musetalk_agent.engines.warp.frame_target import FrameTarget, fetch
from musetalk_agent.engines.warp.interior import Opening, linear, paint, shadow_line, softness
from musetalk_agent.engines.warp.light import LIGHT_AREA, LIGHT_COLS, LIGHT_ROWS
from musetalk_agent.engines.warp.mouth_space import (
    CHIN,
    IL,
    IU,
    NECK,
    OL,
    OU,
    REACH,
    SAMPLES,
    Floats,
    MouthShape,
    smooth,
    unit,
)
from musetalk_agent.media_types import Box, Patch, Pixels

CELL = 0.025
"""Lattice cells (eye distances)."""
BORDER = 0.08
"""Width of the rim in which the deformation goes to zero (eye distances)."""


def render(bundle: Bundle, art: WarpArtefacts, idle_index: int, act: Articulation, blend_weight: float) -> Patch | None:
    """The patch of idle frame `idle_index` for articulation `act`; None where the mouth is outside the image."""
    target = FrameTarget.of(bundle, art, idle_index, act, blend_weight)
    box = target.bounds(art.top - 0.02, NECK + 0.02, REACH, art.part(idle_index))
    if box is None:
        return None
    lattice = Lattice.over(box, target.frame, max(2, round(CELL * target.eyes)))
    own, lent = Field.between(
        (art.idle_shapes[idle_index], lent_shape(target)),
        target.mouth,
        lattice,
        art.top,
        target.sides,
    )
    pixels = _skin(target, lattice, own)
    if lips := lips_over(target, box, lattice, lent):
        lips.lay(pixels)
    return Patch(box, pixels)


def _skin(target: FrameTarget, lattice: Lattice, field: Field) -> Pixels:
    """The idle frame itself, its own mouth and chin moved to where the target's are: uint8 `[h, w, 3]`."""
    dv, box = field.through(lattice.v), lattice.box
    (a, b, _), (c, d, _) = target.frame.tolist()
    moved = np.zeros((*dv.shape, 4), np.float32)  # four channels are turned twice as fast as two
    np.add(field.du * np.float32(a), dv * np.float32(b), out=moved[..., 0])
    np.add(field.du * np.float32(c), dv * np.float32(d), out=moved[..., 1])
    shift = lattice.turned(moved, 2)
    shift *= _rim(lattice.rows, lattice.cols, lattice.cell, box.height, box.width, max(2.0, BORDER * target.eyes))
    return fetch(
        np.asarray(target.bundle.faces[target.idle_index]),
        target.bundle.box(target.idle_index),
        target.art.mouth(target.bundle, target.idle_index),
        lattice,
        shift,
    )


@lru_cache(maxsize=128)
def _rim(rows: int, cols: int, cell: int, height: int, width: int, reach: float) -> Floats:
    """0 at the edge of a lattice's box of `height` × `width` pixels, 1 from `reach` pixels inwards: `[rows, cols]`, read-only."""
    line = np.arange(-cell, (max(rows, cols) - 1) * cell, cell, dtype=np.float32)
    y, x = line[:rows], line[:cols]
    steep = np.float32(1 / reach)
    down = unit(np.minimum(y, np.float32(height - cell) - y) * steep)
    rim = down[:, None] * unit(np.minimum(x, np.float32(width - cell) - x) * steep)
    rim.flags.writeable = False
    return rim


OWN_TEXTURE = 0.5
"""Presence at which the reference's lips have taken over from the idle frame's."""
BESIDE = 1.20, 1.65
"""From where to where, in halves of the mouth beside its middle, lips fade into the idle frame's own pixels."""
OUTLINE_SOFT = 0.06
"""How far from the face's outline lips begin to fade into the idle frame's own pixels (eye distances)."""


@dataclass(frozen=True)
class Lips:
    """What the lips' pixels are made from.

    Args:
        lattice: whose grid the values lie on, with nodes for `part`.
        part: the pixels at which something of the lips is shown.
        maps: float32 `[m, n, 4]`: where each place's pixel is in the reference's mouth space (u, v), taken to lie on the upper
            side; how much further down (eye distances) it is if on the lower side; and positive on the lower side.
        edges: float32 `[m, n, 4]`: distance below the upper and above the lower lip's edge; distance from the nearer corner in
            halves of the mouth; how much of the reference is shown, 0 … 1.
    """

    target: FrameTarget
    box: Box
    lattice: Lattice
    part: Box
    maps: Floats
    edges: Floats

    def lay(self, pixels: Pixels) -> None:
        """Blends the lips into `pixels` (BGR of the patch, uint8 `[h, w, 3]`) in place."""
        part = self.part
        drawn = self._reference().astype(np.float32)  # bytes are blended three times slower than floats
        self._inside(drawn)
        (cover,) = self.lattice.enlarge([self.lattice.turned_plane(self.edges[..., 3])], part)
        if self.target.blend_weight < OWN_TEXTURE:
            cover = cover * np.float32(self.target.blend_weight / OWN_TEXTURE)
        place = _within(part, self.box)
        ground = pixels[place]
        blended = cv2.blendLinear(drawn, ground.astype(np.float32), cover, np.float32(1) - cover)
        ground[:] = cv2.convertScaleAbs(blended)

    def _reference(self) -> Pixels:
        """The reference's pixels over `part`, in the idle frame's light: uint8 `[h, w, 3]`."""
        art, part = self.target.art, self.part
        lent = self.target.lent
        to = art.frames[self.target.reference] * np.array([[FINER_X], [FINER_Y]], np.float32)
        (a, b, c), (d, e, f) = to.tolist()
        u, v, *parting = self.lattice.turned(self.maps)
        x = u * np.float32(a) + (v * np.float32(b) + np.float32(c + lent.offset[0]))
        y = u * np.float32(d) + (v * np.float32(e) + np.float32(f + lent.offset[1]))
        x, y, split, lower = self.lattice.enlarge((x, y, *parting), part)
        further = cv2.multiply(cv2.threshold(lower, 0, 1, cv2.THRESH_BINARY)[1], split)
        map_x, map_y = cv2.scaleAdd(further, b, x), cv2.scaleAdd(further, e, y)
        seen = cv2.remap(lent.pixels, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        lips = cv2.cvtColor(seen, cv2.COLOR_BGRA2BGR)
        if art.lit_otherwise[self.target.idle_index]:
            lips = cv2.multiply(lips, self._light(art.light[self.target.idle_index]), dtype=cv2.CV_8U)
        return np.asarray(lips, np.uint8)

    def _light(self, light: Floats) -> Floats:
        """How many times as bright as the reference the idle frame is, at the pixels of `part`: float32 `[h, w, 3]`."""
        u0, u1, v0, v1 = LIGHT_AREA
        (a, b, c), (d, e, f) = self.target.frame.tolist()
        whole, across, down = a * e - b * d, (LIGHT_COLS - 1) / (u1 - u0), (LIGHT_ROWS - 1) / (v1 - v0)
        x, y = self.part.x0 - c, self.part.y0 - f
        onto = np.array(
            [
                (across * e / whole, -across * b / whole, across * ((e * x - b * y) / whole - u0)),
                (-down * d / whole, down * a / whole, down * ((a * y - d * x) / whole - v0)),
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = self.part.width, self.part.height
        return np.asarray(cv2.warpAffine(light, onto, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32)

    def _inside(self, lips: Floats) -> None:
        """Paints the inside where the lips are apart, and the line where they meet, into `lips` (of `part`) in place.

        `lips` are BGR, float32 `[h, w, 3]`, 0 … 255.
        """
        target, part = self.target, self.part
        soft = softness(target.eyes)
        seen = (self.edges[..., 0] > -soft) & (self.edges[..., 1] > -soft) & (self.edges[..., 2] > 0)
        area = self.lattice.around(seen, target.frame, part)
        if area is None:
            return
        inner = lips[_within(area, part)]
        near = self.lattice.spread(self.edges, area)
        under, over, corner = near
        meeting = shadow_line(under, over, soft)
        meeting *= linear(under + over, 0.0, 0.03, 1.0, 0.0)
        cut = float((target.shape.curves[IL] - target.shape.curves[IU]).max())
        # what was cut out took the line's own shadow with it, and left mixed pixels
        seam = 3 if cut < 0.03 else 2 * round(0.5 + 0.012 * target.eyes) + 1
        blurred = cv2.blur(inner, (1, seam))
        pixels = np.asarray(cv2.blendLinear(blurred, inner, meeting, np.float32(1) - meeting), np.float32)
        most = 0.4 * min(cut / 0.03, 1.0)
        shadow = np.multiply(meeting, linear(corner, 0.0, 0.25, 0.0, most), out=meeting)
        kept = np.float32(1) - shadow
        if target.gap > 0:
            kept, added = self._opened(area, near, shadow, kept)
        else:
            added = target.art.palette.line[:, None, None] * shadow
        pixels *= cv2.cvtColor(kept, cv2.COLOR_GRAY2BGR)
        cv2.add(pixels, cv2.merge(tuple(added)), inner)

    def _opened(self, area: Box, near: Floats, shadow: Floats, kept: Floats) -> tuple[Floats, Floats]:
        """How much of the lips' pixels is kept, `[h, w]`, and what is added to them, BGR `[3, h, w]`, in `area`.

        Args:
            near: `[3, h, w]`, distances below the upper and above the lower lip's edge, and from the nearer corner.
            shadow, kept: `[h, w]`, the shadow of lips that meet, and 1 less it.
        """
        target = self.target
        x = np.arange(area.x0, area.x1, dtype=np.float32)[None]
        y = np.arange(area.y0, area.y1, dtype=np.float32)[:, None]
        u, v = target.places(x, y, target.mouth.centre, float(target.rest.curves[IU][SAMPLES // 2]))
        edge = 0.5 / softness(target.eyes)
        parts = near * np.array([[[edge]], [[edge]], [[1 / 0.15]]], np.float32)
        parts[:2] += np.float32(0.5)
        unit(parts)
        cover = parts[0] * parts[1]
        cover *= parts[2]
        cover *= np.float32(min(target.gap / 0.012, 1.0))
        uncovered = np.float32(1) - cover
        kept *= uncovered
        uncovered *= shadow
        opening = Opening(u, v, near[0], near[1], target.act.rounding, target.gap, target.art.poses[target.idle_index])
        return kept, paint(opening, target.art.palette, cover, uncovered)


def lips_over(target: FrameTarget, box: Box, lattice: Lattice, field: Field) -> Lips | None:
    """The lips within `box`; `field` is that of the reference's mouth (see `lent_shape`). None where none are in the image."""
    source_u = lattice.u + field.du
    maps, edges = (np.empty((*source_u.shape, 4), np.float32) for _ in range(2))
    edges[..., 3] = _cover(target, field, lattice, source_u)
    part = lattice.around(edges[..., 3] > 0, target.frame, box)
    if part is None:
        return None
    maps[..., 0] = source_u
    np.add(lattice.v, field.upper, out=maps[..., 1])
    np.subtract(field.lower, field.upper, out=maps[..., 2])
    np.subtract(lattice.v, field.levels[IU + 1], out=edges[..., 0])
    np.subtract(field.levels[IL + 1], lattice.v, out=edges[..., 1])
    edges[..., 2] = 1 - np.abs(field.s)
    np.subtract(edges[..., 0], edges[..., 1], out=maps[..., 3])
    return Lips(target, box, lattice.within(part), part, maps, edges)


def lent_shape(target: FrameTarget) -> MouthShape:
    """The reference's mouth as its lips are cut out for this shot."""
    return target.art.cut(int(target.art.shown[target.idle_index]), target.gap)


def _cover(target: FrameTarget, field: Field, lattice: Lattice, source_u: Floats) -> Floats:
    """How much of the reference is shown: all of it on the lips, none half way to chin, nose and cheek, none beyond the outline."""
    top, ou, ol, chin = (field.levels[k] for k in (0, OU + 1, OL + 1, CHIN + 1))
    quarter, two = np.float32(0.25), np.float32(2)
    cover: Floats = ramp(lattice.v, top + quarter * (ou - top), two / (ou - top))
    cover *= ramp(-lattice.v, -(ol + np.float32(0.8) * (chin - ol)), two / (chin - ol))
    cover *= linear(np.abs(field.s), BESIDE[0], BESIDE[1] - BESIDE[0], 1.0, 0.0)
    smooth(cover)
    cover *= _on_face(lattice.u - np.float32(target.mouth.centre), target.sides)
    cover *= _on_face(source_u - np.float32(target.shape.centre), target.lent_sides)
    return cover


def _on_face(away: Floats, sides: tuple[float, float]) -> Floats:
    """1 on the face, 0 beyond its outline, which is `sides` to the left and right of the mouth's middle."""
    left, right = sides
    return unit(np.minimum(away + np.float32(left), np.float32(right) - away) * np.float32(1 / OUTLINE_SOFT))


def _within(box: Box, around: Box) -> tuple[slice, slice]:
    """Rows and columns of `box` in pixels of `around`."""
    return slice(box.y0 - around.y0, box.y1 - around.y0), slice(box.x0 - around.x0, box.x1 - around.x0)
