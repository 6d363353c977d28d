"""A still picture brought to life: the head sways and breathes a little, the eyes blink, and it runs without a seam.

The player goes through the frames forwards and backwards, so the sequence is half of a loop and stands still at both ends:
every movement is a sum of `cos(π·m·s)` over `s` in 0 … 1, whose speed is zero there. All sizes are by the face's width.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.blink import Blink
from musetalk_agent.avatars.face import Points
from musetalk_agent.media_types import Pixels

_HALF_LOOP_S = 3.5
_CHIN = 152
_SWAY = 0.008
_NOD = 0.006
_TILT_RADIANS = 0.008
_FADE = 1.5
"""How far beyond the face the motion fades out."""
_BLINK_AT = (0.22, 0.4)
"""One blink a pass, at a share of it within these or as far from its end; the picture says where. Forwards and backwards make a
short pause of 1.5 to 2.8 s and a long one of 4.2 to 5.5 s: people blink each 2 to 6 s, two of them not at the same moments."""
_BLINK_S = (0.12, 0.04, 0.14)
"""Time to close, to stay closed, to open."""


class IdleMotion:
    """Frames of a picture that idles.

    Args:
        pixels: uint8 BGR `[h, w, 3]`.
        points: its mesh, float32 `[468, 2]` in pixels.
        fps: frames per second of the result.
    """

    def __init__(self, pixels: Pixels, points: Points, fps: int) -> None:
        self._pixels = pixels
        self._points = points
        self._fps = fps
        self._count = round(_HALF_LOOP_S * fps)
        self._width = float(np.ptp(points[:, 0]))
        self._neck = points[_CHIN].astype(np.float32)
        self._blink = Blink(pixels, points)
        self._blink_at = _blink_at(pixels)
        self._corner, size = self._reach(pixels.shape)
        rows, columns = np.mgrid[: size[1], : size[0]].astype(np.float32)
        columns, rows = columns + self._corner[0], rows + self._corner[1]
        weight = self._weights(columns, rows)
        self._columns, self._rows = columns, rows
        self._by_shift = weight * np.float32(self._width)
        self._by_turn = weight * (self._neck[1] - rows), weight * (columns - self._neck[0])

    def __len__(self) -> int:
        return self._count

    def frames(self) -> Iterator[tuple[Pixels, Points]]:
        """Each frame with the mesh moved along: uint8 BGR `[h, w, 3]`, float32 `[468, 2]` (the eyelids' points excepted, which
        stay open)."""
        left, top = self._corner
        height, width = self._by_shift.shape
        for k in range(self._count):
            sway, nod, tilt = _pose(k / (self._count - 1))
            picture = self._blink.closed(_closure((k - self._blink_at * (self._count - 1)) / self._fps))
            from_x = self._columns - np.float32(sway) * self._by_shift - np.float32(tilt) * self._by_turn[0]
            from_y = self._rows - np.float32(nod) * self._by_shift - np.float32(tilt) * self._by_turn[1]
            moved = picture.copy()
            moved[top : top + height, left : left + width] = cv2.remap(
                picture, from_x, from_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
            )
            yield moved, self._moved_points(sway, nod, tilt)

    def _moved_points(self, sway: float, nod: float, tilt: float) -> Points:
        x, y = self._points[:, 0], self._points[:, 1]
        weight = self._weights(x, y)
        moved = np.stack(
            [
                x + weight * (sway * self._width + tilt * (self._neck[1] - y)),
                y + weight * (nod * self._width + tilt * (x - self._neck[0])),
            ],
            axis=1,
        )
        return moved.astype(np.float32)

    def _reach(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Corner and size of the part of the picture that moves."""
        margin = self._width * _FADE + 1
        low = np.maximum(np.floor(self._points.min(0) - margin), 0).astype(int)
        high = np.minimum(np.ceil(self._points.max(0) + margin), (shape[1], shape[0])).astype(int)
        return (int(low[0]), int(low[1])), (int(high[0] - low[0]), int(high[1] - low[1]))

    def _weights(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        """1 on the face, falling smoothly to 0 around it, for points of any shape."""
        low, high = self._points.min(0), self._points.max(0)
        beyond_x = np.maximum(np.maximum(low[0] - x, x - high[0]), 0)
        beyond_y = np.maximum(np.maximum(low[1] - y, y - high[1]), 0)
        distance = np.minimum(np.hypot(beyond_x, beyond_y) / np.float32(self._width * _FADE), 1.0)
        weight: NDArray[np.float32] = (0.5 + 0.5 * np.cos(np.float32(math.pi) * distance)).astype(np.float32)
        return weight


def _pose(s: float) -> tuple[float, float, float]:
    """Sway, nod (widths of the face) and tilt (radians) at `s` of the half loop, 0 … 1."""
    one, two, three = (math.cos(math.pi * m * s) for m in (1, 2, 3))
    return _SWAY * (0.7 * one + 0.3 * three), _NOD * (0.8 * two + 0.2 * one), _TILT_RADIANS * (0.75 * one - 0.25 * two)


def _blink_at(pixels: Pixels) -> float:
    """At which share of a pass the eyes of this picture close: always the same for the same pixels."""
    first, last = _BLINK_AT
    seed = zlib.crc32(pixels.tobytes())
    share = first + (last - first) * (seed >> 1) / 0x7FFFFFFF
    return share if seed & 1 else 1 - share


def _closure(time_s: float) -> float:
    """How far the lids are closed, 0 … 1, at a time from the middle of the blink."""
    close, hold, reopen = _BLINK_S
    time_s += hold / 2
    if time_s < 0:
        share = 1 + time_s / close
    elif time_s <= hold:
        share = 1.0
    else:
        share = 1 - (time_s - hold) / reopen
    share = min(max(share, 0.0), 1.0)
    return share * share * (3 - 2 * share)
