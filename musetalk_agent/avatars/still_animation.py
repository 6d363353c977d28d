"""An idle clip from a still image: the head sways and nods a little, the eyes blink, and it loops without a seam.

The player goes through the frames forwards and backwards, so the sequence is half of a loop and stands still at both ends:
every movement is a sum of `cos(π·m·s)` over `s` in 0 … 1, whose speed is zero there. All sizes are by the face's width.

To close an eye, the skin between brow and lid is drawn down over it. Where brow and lid are close together there is too little of
that skin: it would be a smear of brow and shadow. There the lid has the colour of the skin right above the lashes and below the
eye.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

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
"""One blink a pass, at a share of it within these or as far from its end; the image says where. Forwards and backwards make a
short pause of 0.8 to 2.8 s and a long one of 3.5 to 5.5 s, each time another, since the loop turns around elsewhere each time
(`compose/idle.py`): people blink each 2 to 6 s, two of them not at the same moments."""
_BLINK_S = (0.12, 0.04, 0.14)
"""Time to close, to stay closed, to open."""


class StillAnimation:
    """The frames of a still image that moves a little.

    Args:
        pixels: uint8 BGR `[h, w, 3]`, or with alpha `[h, w, 4]`: its frames then have alpha, too.
        points: its mesh, float32 `[468, 2]` in pixels.
        fps: frames per second of the result.
    """

    def __init__(self, pixels: Pixels, points: Points, fps: int) -> None:
        self._alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
        pixels = self._pixels = np.ascontiguousarray(pixels[..., :3])
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
        for k in range(self._count):
            sway, nod, tilt = _head_motion(k / (self._count - 1))
            picture = self._blink.closed(_closure((k - self._blink_at * (self._count - 1)) / self._fps))
            from_x = self._columns - np.float32(sway) * self._by_shift - np.float32(tilt) * self._by_turn[0]
            from_y = self._rows - np.float32(nod) * self._by_shift - np.float32(tilt) * self._by_turn[1]
            moved = _moved(picture, from_x, from_y, left, top)
            if self._alpha is not None:
                moved = np.dstack([moved, _moved(self._alpha, from_x, from_y, left, top)])
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
        """Corner and size of the part of the image that moves."""
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


def _moved(picture: Pixels, from_x: NDArray[np.float32], from_y: NDArray[np.float32], left: int, top: int) -> Pixels:
    """The image with the part at `left`, `top` taken from where the maps say."""
    height, width = from_x.shape
    moved = picture.copy()
    moved[top : top + height, left : left + width] = cv2.remap(
        picture, from_x, from_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return moved


def _head_motion(s: float) -> tuple[float, float, float]:
    """Sway, nod (widths of the face) and tilt (radians) at `s` of the half loop, 0 … 1."""
    one, two, three = (math.cos(math.pi * m * s) for m in (1, 2, 3))
    return _SWAY * (0.7 * one + 0.3 * three), _NOD * (0.8 * two + 0.2 * one), _TILT_RADIANS * (0.75 * one - 0.25 * two)


def _blink_at(pixels: Pixels) -> float:
    """At which share of a pass the eyes of this image close: always the same for the same pixels."""
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


_EYES = (
    # corner, upper lid …, corner / corner, lower lid …, corner / lower edge of the brow
    (
        (33, 246, 161, 160, 159, 158, 157, 173, 133),
        (33, 7, 163, 144, 145, 153, 154, 155, 133),
        (46, 53, 52, 65, 55),
    ),
    (
        (362, 398, 384, 385, 386, 387, 388, 466, 263),
        (362, 382, 381, 380, 374, 373, 390, 249, 263),
        (285, 295, 282, 283, 276),
    ),
)
_LEAST_OPENING = 0.16
"""Eyes that are less open than this (by the eye's width) are closed or hidden: they are left alone."""
_LASHES = (0.25, 0.12)
"""The band of lashes, which moves without being stretched: so far above and below the upper lid, by the eye's opening."""
_BROW_GAP = 0.35
"""The skin begins to stretch this far from the brow to the lid, so that the brow stays where it is."""
_MEETS = 1.3
"""Where the lids meet, from upper (0) to lower (1); the mesh's lower lid lies a little inside the eye."""
_STRETCH = (1.6, 3.0)
"""Skin that is stretched this much begins to give way to a plain colour, and has done so."""
_ABOVE, _UNDER = (0.1, 0.25, 0.4), (0.5, 0.8)
"""Where that colour is taken: up from the lashes (by the way to the skin's end), and below the lower lid (by the eye's opening)."""
_UNDER_SHARE, _SHADOW = 0.6, 0.75
_BENEATH = 0.5, 1.2
"""From where to where under the lower lid the skin's light is taken to judge an iris by (openings of the eye)."""
_IRIS = 0.7
"""An open eye has something darker than this share of the light of the skin below it; dark glasses and lowered lids have not."""
_GREY = np.array([0.114, 0.587, 0.299], np.float32)


@dataclass(frozen=True)
class _Eye:
    """Curves across one eye in pixels of its patch, each float32 `[h, w]` or broadcastable to it; `lid` is BGR `[h, w, 3]`."""

    left: int
    top: int
    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    across: NDArray[np.float32]
    skin: NDArray[np.float32]
    upper: NDArray[np.float32]
    lower: NDArray[np.float32]
    down: NDArray[np.float32]
    lid: NDArray[np.float32]


class Blink:
    """Draws an image with its eyes closed by degrees.

    Args:
        pixels: uint8 BGR `[h, w, 3]`, or with alpha `[h, w, 4]`: its frames then have alpha, too.
        points: its mesh, float32 `[468, 2]` in pixels.
    """

    def __init__(self, pixels: Pixels, points: Points) -> None:
        self._pixels = pixels
        eyes = [eye for curves in _EYES if (eye := _eye(pixels, points, curves)) is not None]
        self._eyes = eyes if all(_sees(pixels, eye) for eye in eyes) else []

    def closed(self, closure: float) -> Pixels:
        """The image with its eyes closed by `closure`, 0 (as it is) … 1 (shut)."""
        if closure <= 0 or not self._eyes:
            return self._pixels
        picture = self._pixels.copy()
        for eye in self._eyes:
            height, width = eye.rows.shape
            part = picture[eye.top : eye.top + height, eye.left : eye.left + width]
            part[:] = _lowered(self._pixels, eye, closure)
        return picture


def _eye(pixels: Pixels, points: Points, curves: tuple[tuple[int, ...], ...]) -> _Eye | None:
    upper, lower, brow = (points[list(curve)] for curve in curves)
    axis = upper[-1] - upper[0]
    width = float(np.linalg.norm(axis))
    if width < 8:
        return None
    axis = axis / width
    down = np.array([-axis[1], axis[0]], np.float32)
    middle = len(upper) // 2
    height = float((lower[middle] - upper[middle]) @ down)
    if height < _LEAST_OPENING * width:
        return None
    around = np.concatenate([upper, lower, brow])
    low = np.floor(around.min(0) - 3).astype(int)
    high = np.ceil(around.max(0) + 4).astype(int)
    if (low < 0).any() or high[0] > pixels.shape[1] or high[1] > pixels.shape[0]:
        return None
    beneath = lower + _BENEATH[1] * height * down  # skin that `_sees` compares with; of a large eye it is far down
    low = np.maximum(np.minimum(low, np.floor(beneath.min(0)).astype(int)), 0)
    high = np.minimum(np.maximum(high, np.ceil(beneath.max(0)).astype(int)), pixels.shape[1::-1])
    rows, columns = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    offset = np.stack([columns, rows], axis=2) - upper[0]
    along = (offset @ axis).astype(np.float32)
    across = (offset @ down).astype(np.float32)
    lid, edge, forehead = (_curve(along, curve - upper[0], axis, down) for curve in (upper, lower, brow))
    skin = forehead + _BROW_GAP * (lid - forehead)
    opening = np.maximum(edge - lid, 0)
    lashes = lid - _LASHES[0] * opening

    def at(height: NDArray[np.float32]) -> NDArray[np.float32]:
        shift = height - across
        x, y = columns + shift * down[0], rows + shift * down[1]
        seen = cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(seen, np.float32)

    above = np.mean([at(lashes - share * np.maximum(lashes - skin, 1)) for share in _ABOVE], axis=0)
    under = np.mean([at(edge + share * opening) for share in _UNDER], axis=0)
    above = np.maximum(above, _SHADOW * under)  # darker than that it is brow
    plain = cv2.GaussianBlur(above + _UNDER_SHARE * (under - above), (0, 0), 0.08 * width)
    return _Eye(int(low[0]), int(low[1]), rows, columns, across, skin, lid, edge, down, np.asarray(plain, np.float32))


def _sees(pixels: Pixels, eye: _Eye) -> bool:
    """Whether an iris or a pupil is seen between the lids."""
    height, width = eye.rows.shape
    light = pixels[eye.top : eye.top + height, eye.left : eye.left + width].astype(np.float32) @ _GREY
    opening = np.maximum(eye.lower - eye.upper, 0)
    wide = opening > 0.5 * opening.max()
    inside = wide & (eye.across > eye.upper + 0.15 * opening) & (eye.across < eye.lower - 0.1 * opening)
    below = wide & (eye.across > eye.lower + _BENEATH[0] * opening) & (eye.across < eye.lower + _BENEATH[1] * opening)
    if not inside.any() or not below.any():
        return True
    return float(np.percentile(light[inside], 5)) < _IRIS * float(np.median(light[below]))


def _curve(
    along: NDArray[np.float32], curve: Points, axis: NDArray[np.float32], down: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Height of a curve at each pixel of the patch, in pixels across the eye."""
    at = curve @ axis
    order = np.argsort(at)
    height = np.interp(along.ravel(), at[order], (curve @ down)[order])
    return np.asarray(height, np.float32).reshape(along.shape)


def _lowered(pixels: Pixels, eye: _Eye, closure: float) -> Pixels:
    opening = np.maximum(eye.lower - eye.upper, 0)
    lashes, edge = eye.upper - _LASHES[0] * opening, eye.upper + _LASHES[1] * opening
    drop = np.float32(closure) * np.maximum(eye.upper + _MEETS * opening - edge, 0)
    skin = np.minimum(eye.skin, lashes - 2)
    stretched = skin + (eye.across - skin) * (lashes - skin) / (lashes + drop - skin)
    source = np.where(eye.across < lashes + drop, np.where(eye.across < skin, eye.across, stretched), eye.across - drop)
    shift = (source - eye.across).astype(np.float32)
    edge = edge + drop
    lid = cv2.remap(pixels, eye.columns + shift * eye.down[0], eye.rows + shift * eye.down[1], cv2.INTER_LINEAR).astype(
        np.float32
    )
    stretch = (lashes + drop - skin) / np.maximum(lashes - skin, 1)
    plain = np.clip((stretch - _STRETCH[0]) / (_STRETCH[1] - _STRETCH[0]), 0, 1)
    plain *= np.clip((eye.across - skin) / (0.3 * (lashes + drop - skin)), 0, 1)
    plain *= np.clip((lashes + drop - eye.across) / np.maximum(0.15 * drop, 1), 0, 1)
    lid += (eye.lid - lid) * plain[..., None]
    covers = np.clip(edge - eye.across + 0.5, 0, 1)[..., None]
    height, width = eye.rows.shape
    open_eye = pixels[eye.top : eye.top + height, eye.left : eye.left + width].astype(np.float32)
    return cast("Pixels", np.rint(lid * covers + open_eye * (1 - covers)).astype(np.uint8))
