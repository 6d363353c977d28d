"""Backward maps: for every pixel of a patch, where in a source picture it comes from.

Maps are computed on a coarse lattice in mouth space and enlarged: they are smooth, and only the lips' edge needs pixel accuracy,
which comes from the signed distances to it that are enlarged with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.geometry import CHIN, IL, IU, LEVELS, NECK, OL, OU, SPAN, Floats, S, Shape
from musetalk_agent.media import Box

SIDEWAYS = 0.60
"""Where skin beside the mouth stops following its corners (eye distances), or at the face's outline if that is nearer."""


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
class Field:
    """How a source is deformed into a target, at a lattice's nodes; all float32 `[rows, cols]`, in mouth space.

    Args:
        s: place across the target's mouth.
        levels: the target's `v` of where the deformation begins, of its five curves, and of where it ends.
        du: how far to the side of each node its source lies.
        upper, lower: how far below it its source lies, if it is above or below the lips' line. Each goes on past its lip's edge
            with the lip's own shift, so that nothing of the source's inside is ever sampled at the edge.
    """

    s: Floats
    levels: tuple[Floats, ...]
    du: Floats
    upper: Floats
    lower: Floats

    @classmethod
    def between(cls, source: Shape, target: Shape, lattice: Lattice, top: float, sides: tuple[float, float]) -> Field:
        """Stretches each column piecewise between corresponding levels, and shifts it sideways with the corners.

        `sides` is how far the face reaches to the left and right of the target's middle: nothing beyond is shifted sideways.
        """
        s = target.s_of_u(lattice.u)
        position = np.clip((s + SPAN) * ((S.size - 1) / (2 * SPAN)), 0, S.size - 1.001)
        index = position.astype(np.intp)
        share = (position - index)[..., None]
        apart = np.stack([*target.curves, *(source.curves - target.curves), source.u_of_s(S) - target.u_of_s(S)], 1)
        looked = apart[index] * (1 - share) + apart[index + 1] * share
        curves = [looked[..., k] for k in range(LEVELS)]
        shifts = [looked[..., LEVELS + k] for k in range(LEVELS)]
        begin = np.minimum(np.float32(top), curves[OU] - 0.03)
        end = max(float(shape.curves[CHIN][S.size // 2]) for shape in (source, target)) + NECK
        levels = (begin, *curves, np.full_like(begin, end))
        v = lattice.v
        upper = shifts[OU] * _ramp(v, begin, curves[OU]) + (shifts[IU] - shifts[OU]) * _ramp(v, curves[OU], curves[IU])
        lower = shifts[IL] + (shifts[OL] - shifts[IL]) * _ramp(v, curves[IL], curves[OL])
        lower += (shifts[CHIN] - shifts[OL]) * _ramp(v, curves[OL], curves[CHIN])
        lower -= shifts[CHIN] * _ramp(v, curves[CHIN], levels[-1])
        return cls(s, levels, looked[..., -1] * _sideways(target, lattice, top, sides), upper, lower)

    def through(self, v: Floats) -> Floats:
        """One continuous shift downwards from `upper` and `lower`: between the lips' edges it passes from one to the other."""
        iu, il = self.levels[IU + 1], self.levels[IL + 1]
        share = np.clip((v - iu) / np.maximum(il - iu, 0.012), 0, 1)
        return np.asarray(self.upper + share * (self.lower - self.upper), np.float32)


def _ramp(v: Floats, start: Floats, end: Floats) -> Floats:
    """0 up to `start`, 1 from `end` on, linear in between."""
    return np.asarray(np.clip((v - start) / np.maximum(end - start, 1e-4), 0, 1), np.float32)


def _sideways(target: Shape, lattice: Lattice, top: float, sides: tuple[float, float]) -> Floats:
    """How much of the corners' movement each node takes part in: all on the lips, none at nose, chin and the face's outline."""
    middle = target.curves[:, S.size // 2]
    begin = min(top, float(middle[OU]) - 0.03)
    part = np.clip((lattice.v - begin) / (middle[OU] - begin), 0, 1)
    part *= np.clip((middle[CHIN] - lattice.v) / (middle[CHIN] - middle[OL]), 0, 1)
    away = lattice.u - target.centre
    left, right = (max(min(side, SIDEWAYS), target.half + 0.02) for side in sides)
    part *= np.clip((left + away) / (left - target.half), 0, 1) * np.clip((right - away) / (right - target.half), 0, 1)
    return np.asarray(part * part * (3 - 2 * part), np.float32)
