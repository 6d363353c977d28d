"""Converts the clip's pixels to those of the published video: size, crop, I420 planes, face window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarUndecodable
from musetalk_agent.media_types import Box, Pixels
from musetalk_agent.protocol.http import DEFAULT_PIXELS, DEFAULT_SIDE, MAX_PIXELS, MAX_SIDE

_WINDOW_SCALE = 1.6
"""Side of the face window in units of the mesh's: forehead, chin and cheeks with room for a blend."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a clip becomes the image: scale to `scale` (width, height), then take `width`×`height` out of it. All even."""

    scaled: tuple[int, int]
    width: int
    height: int

    @property
    def crops(self) -> bool:
        """Whether anything is cut away after scaling."""
        return self.scaled != (self.width, self.height)


def fit(clip: tuple[int, int], width: int | None, height: int | None, limits: AvatarLimits) -> Fit:
    """Size of the image for a clip of `clip` (width, height) pixels.

    Without a requested size it is the clip's own, made even, its longer side at most `DEFAULT_SIDE` and its area `DEFAULT_PIXELS`.
    With one side requested, the other follows the clip's shape as far as `MAX_SIDE` and `MAX_PIXELS` allow; with both, the clip
    covers the size and is cropped.

    Raises:
        AvatarUndecodable: a side would be too small for a face.
    """
    clip_width, clip_height = clip
    if width is None and height is None:
        scale = min(1.0, DEFAULT_SIDE / max(clip), math.sqrt(DEFAULT_PIXELS / (clip_width * clip_height)))
        width = _even(clip_width * scale)
        height = min(_even(clip_height * scale), DEFAULT_PIXELS // max(1, width))
    elif height is None and width is not None:
        height = min(MAX_SIDE, MAX_PIXELS // width, _even(clip_height * width / clip_width))
    elif width is None and height is not None:
        width = min(MAX_SIDE, MAX_PIXELS // height, _even(clip_width * height / clip_height))
    width, height = (width or 0) // 2 * 2, (height or 0) // 2 * 2
    if min(width, height) < limits.side_pixels_min:
        raise AvatarUndecodable(
            f"The clip of {clip_width}×{clip_height} would be shown at {width}×{height}; each side must have at least "
            f"{limits.side_pixels_min} pixels.",
            limit=limits.side_pixels_min,
            value=min(width, height),
        )
    scale = max(width / clip_width, height / clip_height)
    if scale > 1 - 2 / max(clip) and scale <= 1:
        scale = 1.0  # an odd row or column is cut away rather than everything resampled
    scaled = max(width, _even(clip_width * scale)), max(height, _even(clip_height * scale))
    return Fit(scaled, width, height)


def scale(bgr: Pixels, fit: Fit) -> Pixels:
    """A frame at the scaled size, uint8 BGR `[h, w, 3]`, contiguous; the frame itself where it has that size."""
    width, height = fit.scaled
    clip_height, clip_width = bgr.shape[:2]
    if clip_width - width in (0, 1) and clip_height - height in (0, 1):
        return cast("Pixels", np.ascontiguousarray(bgr[:height, :width]))
    how = cv2.INTER_AREA if width < clip_width else cv2.INTER_CUBIC
    return cast("Pixels", cv2.resize(bgr, (width, height), interpolation=how))


def to_i420(bgr: Pixels) -> Pixels:
    """I420 of an image with even sides, uint8 `[h·3/2, w]`, BT.601 limited range."""
    return cast("Pixels", cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420))


def to_clip(points: NDArray[np.float32], clip: tuple[int, int], fit: Fit) -> NDArray[np.float32]:
    """Points `[…, 2]` of the scaled image in pixels of the clip (pixel centres at whole numbers)."""
    width, height = clip
    if width - fit.scaled[0] in (0, 1) and height - fit.scaled[1] in (0, 1):
        return points
    scale = np.array([width / fit.scaled[0], height / fit.scaled[1]], np.float32)
    return ((points + np.float32(0.5)) * scale - np.float32(0.5)).astype(np.float32)


def crop_corner(points: NDArray[np.float32], fit: Fit) -> tuple[int, int]:
    """Left and top of the crop, even: centred, moved as far as needed to hold the face's whole path.

    `points` is `[n, 468, 2]` in pixels of the scaled image.
    """
    low, high = points.min((0, 1)), points.max((0, 1))
    corner = []
    for axis, (whole, shown) in enumerate(zip(fit.scaled, (fit.width, fit.height), strict=True)):
        start = (whole - shown) / 2
        if high[axis] - low[axis] <= shown:
            start = min(max(start, float(high[axis]) - shown), float(low[axis]))
        else:
            start = float(low[axis] + high[axis] - shown) / 2
        corner.append(int(min(max(start, 0), whole - shown)) // 2 * 2)
    return corner[0], corner[1]


def crop_i420(i420: Pixels, size: tuple[int, int], box: Box) -> Pixels:
    """The part `box` (even) of I420 planes uint8 `[h·3/2, w]` of an image of `size`, itself as I420."""
    width, height = size
    out = np.empty((box.height * 3 // 2, box.width), np.uint8)
    out[: box.height] = i420[box.y0 : box.y1, box.x0 : box.x1]
    chroma = i420[height:].reshape(2, height // 2, width // 2)
    part = chroma[:, box.y0 // 2 : box.y1 // 2, box.x0 // 2 : box.x1 // 2]
    out[box.height :] = part.reshape(-1, box.width)
    return out


def to_bgr(i420: Pixels) -> Pixels:
    """BGR `[h, w, 3]` of I420 planes."""
    return cast("Pixels", cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420))


def face_windows(points: NDArray[np.float32], width: int, height: int) -> NDArray[np.int32]:
    """The face window of every frame, int32 `[n, 4]`: x0, y0, x1, y1, even, one size, within the image, on the face.

    `points` is `[n, 468, 2]` in pixels of an image of `width`×`height`.
    """
    low, high = points.min(1), points.max(1)
    size = (high - low).max(0) * _WINDOW_SCALE
    window = np.array([min(width, _even(float(size[0]) + 1)), min(height, _even(float(size[1]) + 1))])
    corner = np.rint(((low + high) / 2 - window / 2) / 2).astype(np.int32) * 2
    corner = np.clip(corner, 0, np.array([width, height]) - window)
    return np.concatenate([corner, corner + window], axis=1).astype(np.int32)


def _even(value: float) -> int:
    """The even whole number at or just below the nearest one."""
    return round(value) // 2 * 2
