"""A face cut out of a frame, upright and at one size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, Points
from musetalk_agent.media_types import Pixels

WIDTH, HEIGHT = 160, 176
"""Size of a cut-out face in pixels."""
EYES = 64.0
"""The outer eye distance in it; a face that GRID's clips show has as many pixels between the eyes."""
EYE_LINE = 48.0

Map = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FacePicture:
    """A face, upright, with 64 pixels between its outer eye corners.

    Args:
        pixels: uint8 BGR `[176, 160, 3]`.
        points: float32 `[468, 2]`, the mesh in these pixels.
        scale: pixels of the frame for one of these.
    """

    pixels: Pixels
    points: Points
    scale: float


def cut_face(bgr: Pixels, points: Points, zoom: float = 1.0) -> FacePicture:
    """Cuts a face out of a frame, uint8 BGR `[h, w, 3]`, by its mesh, float32 `[468, 2]` in the frame's pixels.

    `zoom` enlarges the cut-out, whole, and with it everything that is said of its pixels.
    """
    along = (points[RIGHT_EYE] - points[LEFT_EYE]).astype(np.float64)
    eyes = max(float(np.linalg.norm(along)), 1e-6)
    scale, angle = eyes / (EYES * zoom), math.atan2(along[1], along[0])
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    middle = (points[RIGHT_EYE] + points[LEFT_EYE]) / 2
    rows = np.array([[cos, -sin], [sin, cos]])
    to_frame = np.column_stack([rows, middle - rows @ (zoom * WIDTH / 2, zoom * EYE_LINE)])
    pixels = _warped(bgr, to_frame, (round(WIDTH * zoom), round(HEIGHT * zoom)), int(scale))
    inverse = np.linalg.inv(rows)
    return FacePicture(pixels, ((points - to_frame[:, 2]) @ inverse.T).astype(np.float32), scale)


def _warped(bgr: Pixels, to_frame: Map, size: tuple[int, int], shrink: int) -> Pixels:
    """The cut-out; a face far larger than it is shrunk by a whole factor first, since a bilinear warp skips pixels."""
    if shrink >= 2:
        width, height = size
        corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64) @ to_frame.T
        x0, y0 = (max(0, int(v) // shrink * shrink) for v in corners.min(0))
        x1, y1 = (int(v) + 2 for v in corners.max(0))
        part = bgr[y0:y1, x0:x1]
        columns, rows = part.shape[1] // shrink, part.shape[0] // shrink
        if columns and rows:
            part = part[: rows * shrink, : columns * shrink]
            bgr = np.asarray(cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)
            half = (shrink - 1) / 2  # between the centres of the first pixels
            to_frame = np.column_stack([to_frame[:, :2], to_frame[:, 2] - (x0 + half, y0 + half)]) / shrink
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(bgr, to_frame, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)
