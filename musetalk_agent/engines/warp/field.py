"""Backward maps: for every pixel of a patch, where in a source picture it comes from.

Maps are computed on a coarse lattice in mouth space and enlarged: they are smooth, and only the lips' edge needs pixel accuracy,
which comes from the signed distances to it that are enlarged with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.geometry import CHIN, IL, IU, NECK, OL, OU, SPAN, Floats, S, Shape
from musetalk_agent.media import Box

SIDEWAYS = 0.54
"""Where skin beside the mouth stops following its corners (eye distances): before the face's outline."""


@dataclass(frozen=True)
class Lattice:
    """Nodes `[rows, cols]` spread over a box of pixels, at the centres of its cells; `u`, `v` are theirs in mouth space."""

    box: Box
    u: Floats
    v: Floats

    @classmethod
    def over(cls, box: Box, frame: Floats, cell: float) -> Lattice:
        """Nodes about `cell` pixels apart; `frame` leads from mouth space to pixels."""
        rows, cols = max(4, round(box.height / cell)), max(4, round(box.width / cell))
        x, y = _centres(box.x0, box.width, cols), _centres(box.y0, box.height, rows)
        inverse = np.linalg.inv(frame[:, :2].astype(np.float64))
        px, py = np.meshgrid(x - frame[0, 2], y - frame[1, 2])
        u = inverse[0, 0] * px + inverse[0, 1] * py
        v = inverse[1, 0] * px + inverse[1, 1] * py
        return cls(box, u.astype(np.float32), v.astype(np.float32))

    def positions(self) -> tuple[Floats, Floats]:
        """Pixel positions of the nodes: `[1, cols]` and `[rows, 1]`."""
        rows, cols = self.u.shape
        x, y = _centres(self.box.x0, self.box.width, cols), _centres(self.box.y0, self.box.height, rows)
        return x.astype(np.float32)[None], y.astype(np.float32)[:, None]

    def enlarge(self, nodes: Floats) -> Floats:
        """Values at nodes `[rows, cols, c]` to pixels `[height, width, c]`."""
        size = (self.box.width, self.box.height)
        return np.asarray(cv2.resize(nodes, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _centres(start: int, length: int, count: int) -> NDArray[np.float64]:
    """Centres of `count` cells over `length` pixels from `start`: where `cv2.resize` takes its samples to be."""
    return np.asarray(start + (np.arange(count) + 0.5) * (length / count) - 0.5, np.float64)


@dataclass(frozen=True)
class Columns:
    """A target shape looked up at a lattice's nodes: `s`, and for each level its `v` there."""

    s: Floats
    index: NDArray[np.intp]
    share: Floats
    levels: list[Floats]

    @classmethod
    def of(cls, shape: Shape, lattice: Lattice, top: float) -> Columns:
        s = shape.s_of_u(lattice.u)
        position = np.clip((s + SPAN) * ((S.size - 1) / (2 * SPAN)), 0, S.size - 1.001)
        index = position.astype(np.intp)
        columns = cls(s, index, position - index, [])
        columns.levels.extend(columns.look_up(shape, top))
        return columns

    def look_up(self, shape: Shape, top: float) -> list[Floats]:
        """The seven levels of `shape` at the nodes: where the deformation begins, its five curves, where it ends."""
        base = shape.curves[CHIN]
        curves = [
            np.take(c, self.index) * (1 - self.share) + np.take(c, self.index + 1) * self.share for c in shape.curves
        ]
        begin = np.minimum(np.float32(top), curves[OU] - 0.03)
        end = np.full_like(begin, float(base[base.size // 2]) + NECK)
        return [begin, *curves, end]


def displacement(
    columns: Columns, source: Shape, target: Shape, lattice: Lattice, top: float
) -> tuple[Floats, Floats, Floats]:
    """How far from each node its source lies, in mouth space: `du` for all, `dv` above the lips' line and `dv` below it.

    Each column is stretched piecewise between corresponding levels. Above the line the map goes on past the upper lip's edge with
    the lip's own shift, and below likewise, so that nothing of the source's inside is ever sampled at the edge.
    """
    to, at = columns.levels, columns.look_up(source, top)
    at[0] = to[0]
    at[6] = to[6] = np.maximum(to[6], at[6])
    stretch = [
        np.clip((lattice.v - to[k]) / np.maximum(to[k + 1] - to[k], 1e-4), 0, 1)
        * ((at[k + 1] - to[k + 1]) - (at[k] - to[k]))
        for k in range(6)
    ]
    upper = stretch[0] + stretch[1]
    lower = (at[IL + 1] - to[IL + 1]) + stretch[3] + stretch[4] + stretch[5]
    sideways = source.u_of_s(columns.s) - target.u_of_s(columns.s)
    middle = target.curves[:, S.size // 2]
    begin = min(top, float(middle[OU]) - 0.03)
    fade = np.clip((lattice.v - begin) / (middle[OU] - begin), 0, 1)
    fade *= np.clip((middle[CHIN] - lattice.v) / (middle[CHIN] - middle[OL]), 0, 1)
    beside = np.clip((SIDEWAYS - np.abs(lattice.u - target.centre)) / (SIDEWAYS - target.half), 0, 1)
    fade *= beside
    return sideways * fade * fade * (3 - 2 * fade), upper, lower


def through(columns: Columns, upper: Floats, lower: Floats, lattice: Lattice) -> Floats:
    """One continuous `dv` from the two: between the lips' edges it passes from one to the other."""
    iu, il = columns.levels[IU + 1], columns.levels[IL + 1]
    share = np.clip((lattice.v - iu) / np.maximum(il - iu, 0.012), 0, 1)
    return np.asarray(upper + share * (lower - upper), np.float32)
