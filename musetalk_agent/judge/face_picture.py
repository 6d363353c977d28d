"""A face cut out of a frame, upright and at one size, and the parts of it that are compared with each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, Points
from musetalk_agent.engines.warp.mouth_space import OUTER_LOWER, OUTER_UPPER
from musetalk_agent.media_types import Pixels

WIDTH, HEIGHT = 160, 176
"""Size of a cut-out face in pixels."""
EYES = 64.0
"""The outer eye distance in it; a face that GRID's clips show has as many pixels between the eyes."""
_EYE_LINE = 48.0
OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152),
    *(148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
"""The face's outline, of the 468 mesh points (MediaPipe's `FACEMESH_FACE_OVAL`)."""
_NOSE_BASE, _NOSE_TIP = 2, 1
_ASIDE = 0.6
"""How far to either side of the nose the skin around the mouth reaches, in eye distances: not every patch is as wide as the jaw."""
_LIPS = (*OUTER_UPPER, *OUTER_LOWER[-2:0:-1])

Mask = NDArray[np.bool_]
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


@dataclass(frozen=True, slots=True)
class Regions:
    """Parts of a face as masks, bool `[176, 160]`.

    Args:
        mouth: the lips and what is between them, and a little skin.
        inside: the skin around the mouth, which every engine draws anew: between nose and chin.
        around: the skin that none draws: cheeks and nose above the nose's base, under the eyes.
        upper: all of the face above the nose's base, eyes and brows too.
    """

    mouth: Mask
    inside: Mask
    around: Mask
    upper: Mask


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
    to_frame = np.column_stack([rows, middle - rows @ (zoom * WIDTH / 2, zoom * _EYE_LINE)])
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


def regions(points: Points) -> Regions:
    """The parts of a face by its mesh in a cut-out's pixels, float32 `[468, 2]`."""
    face = cv2.erode(_filled(points[list(OVAL)]), np.ones((9, 9), np.uint8)) > 0
    lips = _filled(points[list(_LIPS)])
    rows = np.arange(HEIGHT)[:, None]
    base, tip, eyes = float(points[_NOSE_BASE, 1]), float(points[_NOSE_TIP, 1]), _EYE_LINE
    under_eyes = eyes + 0.28 * EYES
    mouth, near = (cv2.dilate(lips, np.ones((side, side), np.uint8)) > 0 for side in (7, 11))
    aside = np.abs(np.arange(WIDTH)[None] - float(points[_NOSE_BASE, 0]))
    inside = face & (rows > base + 2) & (aside < _ASIDE * EYES) & ~near
    around = face & (rows > under_eyes) & (rows < max(tip - 0.05 * EYES, under_eyes + 8))
    return Regions(mouth, inside, around, face & (rows < base))


def _filled(polygon: Points) -> Pixels:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return mask
