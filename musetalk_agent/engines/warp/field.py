"""Backward maps: for every pixel of a patch, where in a source picture it comes from.

Maps are computed on a coarse grid in mouth space, whose columns have one `u` and rows one `v`, so that what depends on the place
across the mouth is worked out once a column. The grid is turned onto a lattice of the patch's pixels and enlarged: maps are smooth,
and only the lips' edge needs pixel accuracy, which comes from the signed distances to it that are enlarged with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from musetalk_agent.engines.warp.geometry import (
    CHIN,
    IL,
    IU,
    LEVELS,
    NECK,
    OL,
    OU,
    SPAN,
    Floats,
    S,
    Shape,
    smooth,
    unit,
)
from musetalk_agent.media import Box

SIDEWAYS = 0.60
"""Where skin beside the mouth stops following its corners (eye distances), or at the face's outline if that is nearer."""
STARTS = [0, OU + 1, IL + 1, OL + 1, CHIN + 1]
"""Levels from which to the next one a column is stretched: what lies between the lips is not."""
U_SPAN = 0.5 * (S.size - 1) / SPAN
"""Samples of a curve to one `s`."""


class Nodes(NamedTuple):
    """Some of a lattice's nodes: rows `r0 ≤ r < r1` and columns `c0 ≤ c < c1`, none of them the ones around the box."""

    r0: int
    r1: int
    c0: int
    c1: int


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
        step_u, step_v = cell / np.hypot(a, d), cell / np.hypot(b, e)
        across, along = (int(np.ceil(way - 1e-6)) + 1 for way in ((most - left) / step_u, (least - top) / step_v))
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

    def turned(self, grid: Floats) -> Floats:
        """Values on the grid, float32 `[m, n, c]` with up to four `c`, at the nodes: `[rows, cols, c]`."""
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = self.cols, self.rows
        return np.asarray(cv2.warpAffine(grid, self.turn, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))

    def positions(self) -> tuple[Floats, Floats]:
        """Pixel positions of the nodes, float32 `[1, cols]` and `[rows, 1]`: the middles of their squares."""
        first = (self.cell - 1) / 2 - self.cell
        line = np.arange(max(self.rows, self.cols), dtype=np.float32) * self.cell
        x, y = line[None, : self.cols], line[: self.rows, None]
        return x + np.float32(self.box.x0 + first), y + np.float32(self.box.y0 + first)

    def whole(self) -> Nodes:
        """All of the box."""
        return Nodes(1, self.rows - 1, 1, self.cols - 1)

    def part(self, nodes: Nodes) -> Box:
        """The pixels of the picture that belong to these nodes, within the box."""
        box, cell = self.box, self.cell
        return Box(
            box.x0 + (nodes.c0 - 1) * cell,
            box.y0 + (nodes.r0 - 1) * cell,
            min(box.x0 + (nodes.c1 - 1) * cell, box.x1),
            min(box.y0 + (nodes.r1 - 1) * cell, box.y1),
        )

    def enlarge(self, values: Floats, nodes: Nodes) -> Floats:
        """Values at all nodes, float32 `[rows, cols]` or `[rows, cols, c]`, at the pixels of `part(nodes)`: a view."""
        cell, around = self.cell, values[nodes.r0 - 1 : nodes.r1 + 1, nodes.c0 - 1 : nodes.c1 + 1]
        size = around.shape[1] * cell, around.shape[0] * cell
        made = cv2.resize(around, size, interpolation=cv2.INTER_LINEAR)
        box = self.part(nodes)
        return np.asarray(made[cell : cell + box.height, cell : cell + box.width])


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
    def between(cls, source: Shape, target: Shape, lattice: Lattice, top: float, sides: tuple[float, float]) -> Field:
        """Stretches each column piecewise between corresponding levels, and shifts it sideways with the corners.

        `sides` is how far the face reaches to the left and right of the target's middle: nothing beyond is shifted sideways.
        """
        places = target.places
        s = np.interp(lattice.u[0], places, S).astype(np.float32)
        position = np.minimum((s + np.float32(SPAN)) * np.float32(U_SPAN), np.float32(S.size - 1.001))
        index = position.astype(np.intp)
        apart = np.empty((2 * LEVELS + 1, S.size), np.float32)
        apart[:LEVELS] = target.curves
        np.subtract(source.curves, target.curves, out=apart[LEVELS:-1])
        np.subtract(source.places, places, out=apart[-1])
        before = apart[:, index]
        looked = before + (apart[:, index + 1] - before) * (position - index).astype(np.float32)
        levels = np.empty((LEVELS + 2, s.size), np.float32)
        levels[1:-1] = looked[:LEVELS]
        np.minimum(np.float32(top), levels[OU + 1] - np.float32(0.03), out=levels[0])
        levels[-1] = max(float(shape.curves[CHIN][S.size // 2]) for shape in (source, target)) + NECK
        shifts, v = looked[LEVELS:-1], lattice.v
        steepness = 1 / np.maximum(levels[1:] - levels[:-1], np.float32(1e-4))
        rises = np.stack(
            [shifts[OU], shifts[IU] - shifts[OU], shifts[OL] - shifts[IL], shifts[CHIN] - shifts[OL], -shifts[CHIN]]
        )
        parts = ramp(v, levels[STARTS, None], steepness[STARTS, None])  # [5, m, n]
        parts *= rises[:, None]
        upper = parts[0]
        upper += parts[1]
        lower = parts[2]
        lower += shifts[IL]
        lower += parts[3]
        lower += parts[4]
        du = _sideways(target, lattice, top, sides)
        du *= looked[-1]
        return cls(s, levels, du, upper, lower)

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


def _sideways(target: Shape, lattice: Lattice, top: float, sides: tuple[float, float]) -> Floats:
    """How much of the corners' movement each place takes part in: all on the lips, none at nose, chin and the face's outline."""
    ou, ol, chin = target.curves[[OU, OL, CHIN], S.size // 2].tolist()
    begin = min(top, ou - 0.03)
    left, right = (max(min(side, SIDEWAYS), target.half + 0.02) for side in sides)
    middle, half = target.centre, target.half
    along = np.interp(lattice.v[:, 0], (begin, ou, ol, chin), (0, 1, 1, 0)).astype(np.float32)
    ends = middle - left, middle - half, middle + half, middle + right
    across = np.interp(lattice.u[0], ends, (0, 1, 1, 0)).astype(np.float32)
    return smooth(along[:, None] * across)
