"""Faces that lean: the box turned with the head's roll, at sub-pixel places, so that the network sees the face upright.

A clip whose head leans by less than `LEANS` in all its frames keeps upstream's boxes of whole pixels along the image's edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.musetalk.face_region import (
    BRIDGE,
    MARGIN,
    FaceBox,
    Floats,
    crop_box,
    jaw_lines,
    locked,
    rolls,
)
from musetalk_agent.media_types import Box, Pixels

LEANS = np.radians(4)
"""Of four GRID talkers three lean by 3.3 degrees at most, and so does the demo face: they are left as upstream has them."""


@dataclass(frozen=True)
class Turned:
    """One frame's upright face.

    Args:
        points: float32 `[468, 2]`, the mesh turned upright about the bridge of the nose.
        box: the face box around them: x1, y1, x2, y2, not whole and not cut off at the image's edges.
        back: float64 `[2, 3]`, from upright places to places in the image.
    """

    points: Floats
    box: tuple[float, float, float, float]
    back: NDArray[np.float64]

    @property
    def whole_box(self) -> FaceBox:
        """The box at whole pixels, for masks."""
        x1, y1, x2, y2 = (round(v) for v in self.box)
        return x1, y1, max(x2, x1 + 2), max(y2, y1 + 2)

    def placement(self, side: int) -> NDArray[np.float64]:
        """From the pixels of a crop of `side`×`side` to those of the image, `[2, 3]`; a pixel's middle has whole numbers."""
        return self._placed(self.box, side, side)

    def square_placement(self, side: int) -> NDArray[np.float64]:
        """The same for the square around the face box that masks are made in."""
        return self._placed(crop_box(self.whole_box), side, side)

    def mask_placement(self, mask: Pixels) -> NDArray[np.float64]:
        """The same for a mask over `whole_box`."""
        return self._placed(self.whole_box, mask.shape[1], mask.shape[0])

    def _placed(self, box: tuple[float, float, float, float], width: int, height: int) -> NDArray[np.float64]:
        across, down = (box[2] - box[0]) / width, (box[3] - box[1]) / height
        upright = np.array([[across, 0, box[0] + across / 2 - 0.5], [0, down, box[1] + down / 2 - 0.5], [0, 0, 1]])
        return np.asarray(np.vstack([self.back, [0, 0, 1]]) @ upright)[:2]


def turned_faces(landmarks: Floats, bbox_shift: int = 0) -> list[Turned] | None:
    """The upright face of each frame of a clip, mesh points float32 `[n, 468, 2]`; None for a clip that does not lean."""
    angles = rolls(landmarks)
    if float(np.abs(angles).max()) < LEANS:
        return None
    centres = landmarks[:, BRIDGE].mean(1).astype(np.float64)
    matrices = [
        cv2.getRotationMatrix2D((float(x), float(y)), float(np.degrees(angle)), 1.0)
        for (x, y), angle in zip(centres, angles, strict=True)
    ]
    points = np.stack([p @ m[:, :2].T + m[:, 2] for p, m in zip(landmarks, matrices, strict=True)]).astype(np.float32)
    jaw = jaw_lines(points)
    left, right = jaw[..., 0].min(1), jaw[..., 0].max(1)
    middle = points[:, BRIDGE, 1].mean(1) + bbox_shift
    width, half = locked(right - left), locked(jaw[..., 1].max(1) - middle)
    x1, y1, below = (left + right - width) / 2, middle - half, middle + half + MARGIN
    boxes = np.stack([x1, y1, x1 + width, below], 1).tolist()
    return [
        Turned(p, tuple(box), np.asarray(cv2.invertAffineTransform(m), np.float64))
        for p, box, m in zip(points, boxes, matrices, strict=True)
    ]


def within(placement: NDArray[np.float64], width: int, height: int) -> Box:
    """The box of whole pixels around what a picture of `width`×`height` covers in the image, with two to spare."""
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64)
    places = corners @ placement[:, :2].T + placement[:, 2]
    (x0, y0), (x1, y1) = np.floor(places.min(0)) - 2, np.ceil(places.max(0)) + 3
    return Box(int(x0), int(y0), int(x1), int(y1))


def moved(placement: NDArray[np.floating], x: int, y: int) -> NDArray[np.float64]:
    """The same placement in a part of the image that begins at (x, y)."""
    out = np.array(placement, np.float64)
    out[:, 2] -= (x, y)
    return out


def cut(part: Pixels, placement: NDArray[np.float64], side: int) -> Pixels:
    """`side`×`side` pixels out of `part`, in which `placement` says where they lie; OpenCV's Lanczos."""
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    return cast("Pixels", cv2.warpAffine(part, placement, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def laid(picture: Pixels, placement: NDArray[np.float64], size: tuple[int, int]) -> Pixels:
    """A face, laid where `placement` says, in an image of `size` (width, height); its edge goes on outside it."""
    return cast(
        "Pixels", cv2.warpAffine(picture, placement, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )


def laid_mask(mask: Pixels, placement: NDArray[np.float64], size: tuple[int, int]) -> Pixels:
    """A mask, laid the same way; 0 outside it."""
    return cast("Pixels", cv2.warpAffine(mask, placement, size, flags=cv2.INTER_LINEAR))
