"""Closes the eyes of a still picture by degrees.

To close an eye, the skin between brow and lid is drawn down over it. Where brow and lid are close together there is too little of
that skin: it would be a smear of brow and shadow. There the lid has the colour of the skin right above the lashes and below the
eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import Points
from musetalk_agent.media_types import Pixels

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
        pixels: uint8 BGR `[h, w, 3]`.
        points: its mesh, float32 `[468, 2]` in pixels.
    """

    def __init__(self, pixels: Pixels, points: Points) -> None:
        self._pixels = pixels
        eyes = [eye for curves in _EYES if (eye := _eye(pixels, points, curves)) is not None]
        self._eyes = eyes if all(_sees(pixels, eye) for eye in eyes) else []

    @property
    def sees_eyes(self) -> bool:
        """Whether there are eyes that can be closed."""
        return bool(self._eyes)

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
