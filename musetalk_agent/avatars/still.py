"""A still picture brought to life: slight idle motion that runs without a seam.

The player goes through the frames forwards and backwards, so the sequence is half of a loop and stands still at both ends:
every movement is a sum of `cos(π·m·s)` over `s` in 0 … 1, whose speed is zero there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import Points
from musetalk_agent.media import Pixels

_HALF_LOOP_S = 3.5
_CHIN = 152
_SWAY = 0.008
"""Largest shift of the head, in widths of the face."""
_NOD = 0.006
_TILT_RADIANS = 0.008
_FADE = 1.5
"""How far beyond the face the motion fades out, in widths of the face."""


class IdleMotion:
    """Frames of a picture whose head sways and breathes a little.

    Args:
        pixels: uint8 BGR `[h, w, 3]`.
        points: its mesh, float32 `[468, 2]` in pixels.
        fps: frames per second of the result.
    """

    def __init__(self, pixels: Pixels, points: Points, fps: int) -> None:
        self._pixels = pixels
        self._points = points
        self._count = round(_HALF_LOOP_S * fps)
        self._width = float(np.ptp(points[:, 0]))
        self._neck = points[_CHIN].astype(np.float32)
        height, width = pixels.shape[:2]
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        self._grid = np.stack([columns, rows], axis=2)
        self._weight = self._weights(self._grid.reshape(-1, 2)).reshape(height, width, 1)

    def __len__(self) -> int:
        return self._count

    def frames(self) -> Iterator[tuple[Pixels, Points]]:
        """Each frame with the mesh moved along: uint8 BGR `[h, w, 3]`, float32 `[468, 2]`."""
        for k in range(self._count):
            pose = _pose(k / (self._count - 1))
            shift = self._shift(self._grid, pose) * self._weight
            source = self._grid - shift
            moved = cv2.remap(
                self._pixels, source[:, :, 0], source[:, :, 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
            )
            points = self._points + self._shift(self._points, pose) * self._weights(self._points)[:, None]
            yield cast("Pixels", moved), points.astype(np.float32)

    def _shift(self, at: NDArray[np.float32], pose: tuple[float, float, float]) -> NDArray[np.float32]:
        """How far the head carries the points `[…, 2]` along: sway, nod and a turn about the neck."""
        sway, nod, tilt = pose
        away = at - self._neck
        turned = np.stack([-away[..., 1], away[..., 0]], axis=-1) * np.float32(tilt)
        shift: NDArray[np.float32] = turned + np.array([sway, nod], np.float32) * np.float32(self._width)
        return shift

    def _weights(self, at: NDArray[np.float32]) -> NDArray[np.float32]:
        """1 on the face, falling smoothly to 0 around it, for points `[n, 2]`."""
        low, high = self._points.min(0), self._points.max(0)
        beyond = np.maximum(np.maximum(low - at, at - high), 0) / np.float32(self._width * _FADE)
        distance = np.minimum(np.linalg.norm(beyond, axis=1), 1.0)
        weight: NDArray[np.float32] = (0.5 + 0.5 * np.cos(math.pi * distance)).astype(np.float32)
        return weight


def _pose(s: float) -> tuple[float, float, float]:
    """Sway, nod (widths of the face) and tilt (radians) at `s` of the half loop, 0 … 1."""
    one, two, three = (math.cos(math.pi * m * s) for m in (1, 2, 3))
    return _SWAY * (0.7 * one + 0.3 * three), _NOD * (0.8 * two + 0.2 * one), _TILT_RADIANS * (0.75 * one - 0.25 * two)
