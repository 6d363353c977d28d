"""Backward maps: for every pixel of a patch, where in a source frame it comes from.

Maps are computed on a coarse grid in mouth space, whose columns have one `u` and rows one `v`, so that what depends on the place
across the mouth is worked out once a column. The grid is turned onto a lattice of the patch's pixels and enlarged: maps are smooth,
and only the lips' edge needs pixel accuracy, which comes from the signed distances to it that are enlarged with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, floor, hypot

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.articulation import narrowness
from musetalk_agent.engines.warp.mouth_space import (
    CHIN,
    IL,
    IU,
    LEVELS,
    NECK,
    OL,
    OU,
    SPAN,
    Floats,
    MouthShape,
    S,
    unit,
)
from musetalk_agent.media_types import Box

SIDEWAYS = 0.60
"""Where skin beside the mouth stops following its corners (eye distances), or at the face's outline if that is nearer."""
CHIN_STILL = 0.55
"""From where on, between the lower lip and the chin, skin beside a narrow cheek does not follow the corners: the jaw narrows."""
STEEP, STEEP_LEAST = 0.08, 0.25
"""Skin at a corner that is nearer than this to the outline (eye distances) follows it in proportion, down to this share: it must
stand still at the outline."""
STARTS = [0, OU + 1, IL + 1, OL + 1, CHIN + 1]
"""Levels from which to the next one a column is stretched: what lies between the lips is not."""
STILL = 0.02
"""A pixel that comes from less far away (pixels) stays as it is: that is a level where its neighbour is 50 levels off."""
U_SPAN = 0.5 * (S.size - 1) / SPAN
"""Samples of a curve to one `s`."""


@dataclass(frozen=True)
class Lattice:
    """Nodes over a box of pixels, one to each square of `cell` pixels and one more all around, and a grid in mouth space.

    Args:
        box: the pixels.
        cell: whole pixels from node to node.
        rows, cols: nodes, the ones around the box among them.
        u, v: float32 `[1, n]` and `[m, 1]`, where the grid's columns and rows lie in mouth space.
        turn: float64 `[2, 3]`, from a node's column and row to those of the grid.
    """

    box: Box
    cell: int
    rows: int
    cols: int
    u: Floats
    v: Floats
    turn: np.ndarray

    @classmethod
    def over(cls, box: Box, frame: Floats, cell: int) -> Lattice:
        """`frame` leads from mouth space to pixels; the grid's lines are about `cell` pixels apart, too."""
        rows, cols = -(-box.height // cell) + 2, -(-box.width // cell) + 2
        (a, b, c), (d, e, f) = frame.tolist()
        whole = a * e - b * d
        x, y = box.x0 - (cell + 1) / 2 - c, box.y0 - (cell + 1) / 2 - f  # the first node
        u, v = (e * x - b * y) / whole, (a * y - d * x) / whole
        right, down = (e * cell / whole, -d * cell / whole), (-b * cell / whole, a * cell / whole)  # to the next node
        ends = [(i * right[k] + j * down[k]) for k in (0, 1) for i in (0, cols - 1) for j in (0, rows - 1)]
        (left, most), (top, least) = (min(ends[:4]), max(ends[:4])), (min(ends[4:]), max(ends[4:]))
        step_u, step_v = cell / hypot(a, d), cell / hypot(b, e)
        across, along = (ceil(way - 1e-6) + 1 for way in ((most - left) / step_u, (least - top) / step_v))
        turn = np.array(
            [
                (right[0] / step_u, down[0] / step_u, -left / step_u),
                (right[1] / step_v, down[1] / step_v, -top / step_v),
            ]
        )
        line = np.arange(max(across, along), dtype=np.float32)
        return cls(
            box,
            cell,
            rows,
            cols,
            (line[:across] * np.float32(step_u) + np.float32(u + left))[None],
            (line[:along] * np.float32(step_v) + np.float32(v + top))[:, None],
            turn,
        )

    def within(self, part: Box) -> Lattice:
        """The same grid with the nodes of `part` of the box alone, or of a few pixels more above and to the left."""
        box, cell = self.box, self.cell
        col, row = (part.x0 - box.x0) // cell, (part.y0 - box.y0) // cell
        whole = Box(box.x0 + col * cell, box.y0 + row * cell, part.x1, part.y1)
        turn = self.turn.copy()
        turn[:, 2] += turn[:, :2] @ (col, row)
        return replace(self, box=whole, rows=-(-whole.height // cell) + 2, cols=-(-whole.width // cell) + 2, turn=turn)

    def turned(self, grid: Floats, wanted: int = 4) -> Floats:
        """Values on the grid, float32 `[m, n, 4]` (three are turned half as fast), at the nodes: the first `wanted` of them as
        planes `[wanted, rows, cols]`."""
        return np.ascontiguousarray(self.turned_plane(grid).transpose(2, 0, 1)[:wanted])

    def turned_plane(self, grid: Floats) -> Floats:
        """Values on the grid, float32 `[m, n]`, at the nodes."""
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = self.cols, self.rows
        return np.asarray(cv2.warpAffine(grid, self.turn, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))

    def spread(self, grid: Floats, part: Box) -> Floats:
        """The first three of values on the grid, float32 `[m, n, 4]`, at the pixels of `part`: planes `[3, h, w]`.

        It is sharper than `turned` and `enlarge`, and dearer for more than a few thousand pixels.
        """
        first = (self.cell - 1) / 2 - self.cell  # where the first node lies in the box
        onto = self.turn.copy()
        onto[:, :2] /= self.cell
        onto[:, 2] += onto[:, :2] @ (part.x0 - self.box.x0 - first, part.y0 - self.box.y0 - first)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = part.width, part.height
        made = cv2.warpAffine(grid, onto, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.ascontiguousarray(made.transpose(2, 0, 1)[:3])

    def around(self, seen: NDArray[np.bool_], frame: Floats, within: Box) -> Box | None:
        """The pixels of `within` at which a place of the grid that is `seen`, or one beside it, counts; None for none.

        Args:
            seen: bool `[m, n]`.
            frame: leads from mouth space to pixels.
        """
        left, above, width, height = cv2.boundingRect(seen.view(np.uint8))
        if width == 0:
            return None
        u, v = self.u[0], self.v[:, 0]
        u0, u1 = float(u[max(left - 1, 0)]), float(u[min(left + width, u.size - 1)])
        v0, v1 = float(v[max(above - 1, 0)]), float(v[min(above + height, v.size - 1)])
        (a, b, c), (d, e, f) = frame.tolist()
        xs, ys = (a * u0, a * u1, b * v0, b * v1), (d * u0, d * u1, e * v0, e * v1)
        x0 = max(floor(min(xs[:2]) + min(xs[2:]) + c), within.x0)
        y0 = max(floor(min(ys[:2]) + min(ys[2:]) + f), within.y0)
        x1 = min(ceil(max(xs[:2]) + max(xs[2:]) + c) + 1, within.x1)
        y1 = min(ceil(max(ys[:2]) + max(ys[2:]) + f) + 1, within.y1)
        return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def positions(self) -> tuple[Floats, Floats]:
        """Pixel positions of the nodes, float32 `[1, cols]` and `[rows, 1]`: the middles of their squares."""
        first = (self.cell - 1) / 2 - self.cell
        line = np.arange(max(self.rows, self.cols), dtype=np.float32) * self.cell
        x, y = line[None, : self.cols], line[: self.rows, None]
        return x + np.float32(self.box.x0 + first), y + np.float32(self.box.y0 + first)

    def moved(self, shift: Floats) -> Box | None:
        """The pixels of the nodes that `shift` moves (pixels, `[2, rows, cols]`) and of those beside them; None for none."""
        still = cv2.bitwise_and(cv2.inRange(shift[0], -STILL, STILL), cv2.inRange(shift[1], -STILL, STILL))
        left, above, width, height = cv2.boundingRect(cv2.bitwise_not(still))
        if width == 0:
            return None
        box, cell = self.box, self.cell
        x0, y0 = box.x0 + max(left - 2, 0) * cell, box.y0 + max(above - 2, 0) * cell
        x1, y1 = min(box.x0 + (left + width) * cell, box.x1), min(box.y0 + (above + height) * cell, box.y1)
        return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def enlarge(self, planes: Iterable[Floats], part: Box) -> list[Floats]:
        """Planes of values at all nodes, float32 `[rows, cols]`, at the pixels of `part` of the box: views."""
        cell, x, y, width, height = self.cell, part.x0 - self.box.x0, part.y0 - self.box.y0, part.width, part.height
        c0, r0 = x // cell, y // cell  # the node before the first pixel's
        c1, r1 = (x + width - 1) // cell + 3, (y + height - 1) // cell + 3
        size = (c1 - c0) * cell, (r1 - r0) * cell
        left, above = x - (c0 - 1) * cell, y - (r0 - 1) * cell
        made = (cv2.resize(plane[r0:r1, c0:c1], size, interpolation=cv2.INTER_LINEAR) for plane in planes)
        return [np.asarray(plane, np.float32)[above : above + height, left : left + width] for plane in made]


@dataclass(frozen=True)
class Field:
    """How a source is deformed into a target, on a lattice's grid; float32, in mouth space.

    Args:
        s: `[n]`, place across the target's mouth of each column.
        levels: `[7, n]`, the target's `v` of where the deformation begins, of its five curves, and of where it ends.
        du: `[m, n]`, how far to the side of each place its source lies.
        upper, lower: `[m, n]`, how far below it its source lies, if it is above or below the lips' line. Each goes on past its
            lip's edge with the lip's own shift, so that nothing of the source's inside is ever sampled at the edge.
    """

    s: Floats
    levels: Floats
    du: Floats
    upper: Floats
    lower: Floats

    @classmethod
    def between(
        cls,
        sources: tuple[MouthShape, ...],
        target: MouthShape,
        lattice: Lattice,
        top: float,
        sides: tuple[float, float],
    ) -> tuple[Field, ...]:
        """Stretches each column piecewise between corresponding levels, and shifts it sideways with the corners.

        One field per source, all on one grid: what depends on the target alone is worked out once.

        `sides` is how far the face reaches to the left and right of the target's middle: nothing beyond is shifted sideways.
        """
        places = target.places
        s = np.interp(lattice.u[0], places, S).astype(np.float32)
        position = np.minimum((s + np.float32(SPAN)) * np.float32(U_SPAN), np.float32(S.size - 1.001))
        index = position.astype(np.intp)
        apart = np.empty((len(sources) + 1, LEVELS + 1, S.size), np.float32)
        apart[0, :LEVELS], apart[0, LEVELS] = target.curves, 0
        for k, source in enumerate(sources, 1):
            np.subtract(source.curves, target.curves, out=apart[k, :LEVELS])
            np.subtract(source.places, places, out=apart[k, LEVELS])
        looked = apart.take(index, 2)
        looked += (apart.take(index + 1, 2) - looked) * (position - index).astype(np.float32)
        levels = np.empty((LEVELS + 2, s.size), np.float32)
        levels[1:-1] = looked[0, :LEVELS]
        np.minimum(np.float32(top), levels[OU + 1] - np.float32(0.03), out=levels[0])
        levels[-1] = max(float(shape.curves[CHIN][S.size // 2]) for shape in (*sources, target)) + NECK
        steepness = 1 / np.maximum(levels[1:] - levels[:-1], np.float32(1e-4))
        parts = ramp(lattice.v, levels[STARTS, None], steepness[STARTS, None])  # [5, m, n]
        along, across = _sideways(target, lattice, top, sides)
        shifts = looked[1:, :, None]  # [k, 6, 1, n]
        du = np.matmul(along, across * shifts[:, LEVELS])
        upper, lower = _stretched(parts, shifts)
        return tuple(cls(s, levels, *planes) for planes in zip(du, upper, lower, strict=True))

    def through(self, v: Floats) -> Floats:
        """One continuous shift downwards from `upper` and `lower`: between the lips' edges it passes from one to the other."""
        iu, il = self.levels[IU + 1], self.levels[IL + 1]
        share = ramp(v, iu, 1 / np.maximum(il - iu, np.float32(0.012)))
        share *= self.lower - self.upper
        share += self.upper
        return share


def ramp(v: Floats, start: Floats | np.float32, steepness: Floats | np.float32) -> Floats:
    """0 up to `start`, from there up by `steepness` to 1: float32, of the shape that the three make together."""
    out = np.asarray(v - start, np.float32)
    out *= steepness
    return unit(out)


def _stretched(parts: Floats, shifts: Floats) -> tuple[Floats, Floats]:
    """`upper` and `lower` of several sources, `[k, m, n]` each.

    Args:
        parts: `[5, m, n]`, how far each place is on its way through the parts of a column.
        shifts: `[k, 6, 1, n]`, how far below the target's each source's five curves lie, and how far to the side.
    """
    upper = parts[0] * shifts[:, OU]
    upper += parts[1] * (shifts[:, IU] - shifts[:, OU])
    lower = parts[2] * (shifts[:, OL] - shifts[:, IL])
    lower += shifts[:, IL]
    lower += parts[3] * (shifts[:, CHIN] - shifts[:, OL])
    lower -= parts[4] * shifts[:, CHIN]
    return upper, lower


def _sideways(target: MouthShape, lattice: Lattice, top: float, sides: tuple[float, float]) -> tuple[Floats, Floats]:
    """How much of the corners' movement each place takes part in: all on the lips, none at nose, chin and the face's outline.

    It is the product of two float32 matrices `[m, 2]` and `[2, n]`: `smooth` of the share down the face times that across it.
    """
    ou, ol, chin = (float(target.curves[level, S.size // 2]) for level in (OU, OL, CHIN))
    begin = min(top, ou - 0.03)
    left, right = (max(min(side, SIDEWAYS), target.half + 0.02) for side in sides)
    middle, half = target.centre, target.half
    still = 1 - (1 - CHIN_STILL) * float(narrowness(np.array(sides, np.float32)).max())
    down = np.interp(lattice.v[:, 0], (begin, ou, ol, ol + still * (chin - ol)), (0, 1, 1, 0)).astype(np.float32)
    ends = middle - left, middle - half, middle + half, middle + right
    one, other = (min(max((side - half) / STEEP, STEEP_LEAST), 1.0) for side in sides)
    beside = np.interp(lattice.u[0], ends, (0, one, other, 0)).astype(np.float32)
    along, across = np.empty((down.size, 2), np.float32), np.empty((2, beside.size), np.float32)
    square = down * down
    np.multiply(square, np.float32(3), out=along[:, 0])
    np.multiply(square * down, np.float32(-2), out=along[:, 1])
    np.multiply(beside, beside, out=across[0])
    np.multiply(across[0], beside, out=across[1])
    return along, across
