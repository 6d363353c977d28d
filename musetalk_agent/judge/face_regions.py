"""The parts of a face that are compared with each other."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import Points
from musetalk_agent.avatars.face_picture import EYE_LINE, EYES, HEIGHT, WIDTH
from musetalk_agent.engines.warp.mouth_space import OUTER_LOWER, OUTER_UPPER
from musetalk_agent.media_types import Pixels

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


def regions(points: Points) -> Regions:
    """The parts of a face by its mesh in a cut-out's pixels, float32 `[468, 2]`."""
    face = cv2.erode(_filled(points[list(OVAL)]), np.ones((9, 9), np.uint8)) > 0
    lips = _filled(points[list(_LIPS)])
    rows = np.arange(HEIGHT)[:, None]
    base, tip, eyes = float(points[_NOSE_BASE, 1]), float(points[_NOSE_TIP, 1]), EYE_LINE
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
