"""Mouth space: a face-aligned frame in which mouths of all idle frames, sizes and tilts are the same.

Its unit is the distance between the outer eye corners (mesh points 33 and 263) of the reference frame, its origin the point
between them, `u` runs along the eye line to the image's right and `v` down the face. An affine map per idle frame leads to
pixels. Curves across the mouth are sampled over `s`, which is 0 at the mouth's middle, ±1 at its corners and ±`SPAN` where the
deformation ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

EYES = (33, 263)
CORNERS = (61, 291)
SUBNASALE = 2
OUTER_UPPER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
OUTER_LOWER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
JAW = (172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397)
# Points that speech does not move: eye corners, bridge and base of the nose, philtrum, temples. The base of the nose counts
# most, for it is nearest to the mouth in place and in depth.
STEADY = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 127, 356, 234, 454, 2, 98, 327, 97, 326, 94, 129, 358, 164)
STEADY_WEIGHTS = (1.0,) * 10 + (0.5,) * 4 + (3.0,) * 8 + (1.5,)

SPAN = 2.4
SAMPLES = 97
S = np.linspace(-SPAN, SPAN, SAMPLES, dtype=np.float32)
REACH = 0.66
"""Where the deformation ends, left and right of the mouth's middle (eye distances)."""
BESIDE = 0.3
"""`u` per `s` just outside the corners, for every mouth: so a mouth that narrows or widens drags no more skin than it must."""
NECK = 0.34
"""How far below the chin the deformation ends (eye distances)."""

LEVELS = 5
OU, IU, IL, OL, CHIN = range(LEVELS)


@dataclass(frozen=True)
class MouthShape:
    """Where a mouth is, in mouth space.

    Args:
        centre, half: `u` of its middle, and half the distance of its corners.
        curves: float32 `[5, SAMPLES]`, `v` over `S` of the upper lip's outer and inner edge, the lower lip's inner and outer
            edge, and the chin.
    """

    centre: float
    half: float
    curves: Floats

    @property
    def opening(self) -> float:
        """How far the lips are apart at most, in eye distances."""
        return float((self.curves[IL] - self.curves[IU]).max())

    def u_of_s(self, s: Floats) -> Floats:
        """`u` for `s`: linear between the corners, and from there in a smooth curve to the end of the deformation."""
        away = np.abs(s)
        t = np.clip((away - 1) / (SPAN - 1), 0, 1)
        start, end = BESIDE * (SPAN - 1), REACH - self.half
        beyond = start * t + (3 * end - 2 * start - end) * t**2 + (start + end - 2 * end) * t**3
        return np.asarray(self.centre + np.copysign(np.minimum(away, 1) * self.half + beyond, s), np.float32)

    @cached_property
    def places(self) -> Floats:
        """`u` for all `S`: `u_of_s(S)`, which is linear in `centre` and `half`."""
        return np.asarray(_PER_HALF * np.float32(self.half) + (_PLACES + np.float32(self.centre)), np.float32)

    def s_of_u(self, u: Floats) -> Floats:
        """The inverse of `u_of_s`, exact at `S` and linear in between."""
        return np.interp(u.ravel(), self.places, S).astype(np.float32).reshape(u.shape)

    def towards(self, other: MouthShape, amount: float) -> MouthShape:
        """The shape `amount` (0 … 1) of the way from this one to `other`, which is `other` itself at 1."""
        if amount == 1:
            return other
        return MouthShape(
            self.centre + amount * (other.centre - self.centre),
            self.half + amount * (other.half - self.half),
            np.asarray(self.curves + amount * (other.curves - self.curves), np.float32),
        )


_FLAT = np.zeros((LEVELS, SAMPLES), np.float32)
_PLACES = MouthShape(0.0, 0.0, _FLAT).u_of_s(S)
_PER_HALF = MouthShape(0.0, 1.0, _FLAT).u_of_s(S) - _PLACES


def unit(values: Floats) -> Floats:
    """Cut to 0 … 1, in place: `np.clip` takes two to three times as long for a frame's small arrays."""
    return values.clip(_NOTHING, _ALL, out=values)


_NOTHING, _ALL = np.float32(0), np.float32(1)


def smooth(part: Floats) -> Floats:
    """`part` (0 … 1) with level ends, in place."""
    bent = part * np.float32(-2)
    bent += np.float32(3)
    part *= part
    part *= bent
    return part


def eye_frame(points: Floats) -> Floats:
    """The similarity that leads from mouth space to pixels, by the eye line of one mesh `[468, 2]`: float32 `[2, 3]`."""
    left, right = points[EYES[0]].astype(np.float64), points[EYES[1]].astype(np.float64)
    along = right - left
    if np.hypot(*along) < 2.0:
        along = np.array([2.0, 0.0])
    middle = (left + right) / 2
    return np.array([[along[0], -along[1], middle[0]], [along[1], along[0], middle[1]]], np.float32)


def pose_frames(landmarks: Floats, reference: int) -> Floats:
    """Maps from mouth space to pixels for all idle frames `[n, 468, 2]`: float32 `[n, 2, 3]`.

    Each is the affine map that carries the reference's steady points onto the idle frame's best, so that turning heads are
    followed.
    """
    base = eye_frame(landmarks[reference])
    steady = to_mouth(base, landmarks[reference][list(STEADY)])
    weight = np.sqrt(np.array(STEADY_WEIGHTS))[:, None]
    design = np.hstack([steady, np.ones((len(STEADY), 1))]) * weight
    solve = np.linalg.pinv(design, rcond=1e-6)
    targets = landmarks[:, list(STEADY)].astype(np.float64) * weight
    frames = np.einsum("ck,nkd->ndc", solve, targets)
    degenerate = np.abs(np.linalg.det(frames[:, :, :2])) < 0.2 * abs(np.linalg.det(base[:, :2]))
    for idle_index in np.flatnonzero(degenerate):
        frames[idle_index] = eye_frame(landmarks[idle_index])
    return np.asarray(frames, np.float32)


def in_window(frame: Floats, corner: NDArray[np.int32]) -> Floats:
    """The map `frame` to pixels of a part of the image that begins at `corner` (x, y)."""
    out = frame.astype(np.float32, copy=True)
    out[:, 2] -= corner
    return np.asarray(out, np.float32)


def to_mouth(frame: Floats, pixels: Floats) -> Floats:
    """Pixels `[…, 2]` into mouth space."""
    inverse = np.linalg.inv(frame[:, :2].astype(np.float64))
    return np.asarray((pixels - frame[:, 2]) @ inverse.T, np.float32)


def mesh_shape(points: Floats) -> MouthShape:
    """The shape that the mesh sees, from its 468 points in mouth space.

    Beyond the corners the lips' edges run on together, a hair apart, so that one description covers cheeks and lips.
    """
    left, right = points[CORNERS[0]], points[CORNERS[1]]
    centre = float(left[0] + right[0]) / 2
    half = float(np.clip(abs(right[0] - left[0]) / 2, 0.12, 0.45))
    shape = MouthShape(centre, half, np.zeros((LEVELS, SAMPLES), np.float32))
    u = shape.u_of_s(S)
    curves = [_curve(points, ids, u) for ids in (OUTER_UPPER, INNER_UPPER, INNER_LOWER, OUTER_LOWER, JAW)]
    middle = (curves[IU] + curves[IL]) / 2
    gap = np.maximum(curves[IL] - curves[IU], 0) * (np.abs(S) < 1)
    curves[IU], curves[IL] = middle - gap / 2, middle + gap / 2
    return MouthShape(centre, half, ordered(np.stack(curves)))


def _curve(points: Floats, ids: tuple[int, ...], u: Floats) -> Floats:
    chosen = points[list(ids)]
    chosen = chosen[np.argsort(chosen[:, 0])]
    return np.asarray(np.interp(u, chosen[:, 0], chosen[:, 1]), np.float32)


def ordered(curves: Floats) -> Floats:
    """The curves with each level below the one before: lips keep a least thickness, the chin a least distance."""
    out = curves.astype(np.float32, copy=True)
    out[IL] = np.maximum(out[IL], out[IU])
    out[OU] = np.minimum(out[OU], out[IU] - 0.02)
    out[OL] = np.maximum(out[OL], out[IL] + 0.03)
    out[CHIN] = np.maximum(out[CHIN], out[OL] + 0.10)
    return out
