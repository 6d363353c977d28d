"""Which way a head is turned, from its mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOSE_TIP = 1
TEMPLES = (127, 234), (356, 454)
TURN, NOD = 0.63, 0.46
"""How far the tip of the nose moves against the temples, in their distance, per tangent of the angle: measured on eight faces whose
mesh was turned by up to 40° and nodded by up to 28°."""


def head_angles(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the head is turned and nodded in each frame, from points `[n, 468, 2]`: float32 `[n, 2]`, radians.

    A head that is turned to the picture's right, or looks down, has positive angles. The nod's zero differs from face to face by
    some 15°; differences within a face are right to about a tenth.
    """
    left, right = (points[:, list(ids)].mean(1) for ids in TEMPLES)
    along = right - left
    apart = np.maximum(np.linalg.norm(along, axis=1), 1.0)
    along = along / apart[:, None]
    down = np.stack([-along[:, 1], along[:, 0]], 1)
    tip = points[:, NOSE_TIP] - (left + right) / 2
    turn, nod = (np.sum(tip * axis, axis=1) / apart for axis in (along, down))
    return np.asarray(np.stack([np.arctan(turn / TURN), np.arctan(nod / NOD)], 1), np.float32)


def head_reach(points: NDArray[np.float32]) -> tuple[float, float]:
    """How far a clip's head turns from the camera, and how far it nods to either side of its middle: radians, ≥ 0.

    The 2 % of frames at each end do not count.
    """
    low, high = np.percentile(head_angles(points), (2, 98), axis=0)
    return float(max(abs(low[0]), abs(high[0]))), float(high[1] - low[1]) / 2
