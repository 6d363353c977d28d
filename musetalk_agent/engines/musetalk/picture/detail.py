"""Gives a generated face the detail back that the network loses: pores, stubble and edges finer than its 256 pixels.

On skin the detail comes from a frame of the clip itself whose mouth is closed, laid where the face is; lips and teeth, which move
on their own, are sharpened by themselves. As much is added as is missing, measured on the skin.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels

Floats = NDArray[np.float32]

FINEST = 1.0
"""Detail is what is finer than a Gaussian of so many of the network's pixels (sigma)."""
OWN = 0.6
"""How far lips and teeth are sharpened by themselves at `sharpen` 1, as a share of their own detail."""
MOST = 24
"""Levels that detail may add or take: more is an edge that lies elsewhere in the closed-mouth frame."""
MOST_OWN = 1.5
"""Skin of which the network has lost everything gets at most so much of the clip's detail."""


def detail(picture: Pixels, sigma: float) -> NDArray[np.int16]:
    """What is finer than a Gaussian of `sigma` pixels, int16 `[h, w, 3]`, at most `MOST` levels."""
    fine = cv2.subtract(picture, cv2.GaussianBlur(picture, (0, 0), sigma), dtype=cv2.CV_16S)
    return cast("NDArray[np.int16]", np.clip(fine, -MOST, MOST, out=fine))


def sharpened(patch: Pixels, clips: NDArray[np.int16], lips: Floats, sigma: float, amount: float) -> Pixels:
    """`patch`, uint8 BGR `[h, w, 3]`, with detail added.

    Args:
        clips: the clip's own `detail` at the same place, `[h, w, 3]`.
        lips: float32 `[h, w]`, 1 on lips and mouth, 0 on skin.
        sigma: of `detail`.
        amount: 0 … 1.
    """
    own = detail(patch, sigma)
    skin = lips < 0.05
    has, should = (float(np.abs(part[skin]).mean()) if skin.any() else 0.0 for part in (own, clips))
    missing = min(max(0.0, 1 - has / should), 1.0) * MOST_OWN if should > 0 else 0.0
    on_skin = cv2.cvtColor((1 - lips) * np.float32(amount * min(1.0, missing)), cv2.COLOR_GRAY2BGR)
    on_lips = cv2.cvtColor(lips * np.float32(amount * OWN), cv2.COLOR_GRAY2BGR)
    added = cv2.add(cv2.multiply(clips, on_skin, dtype=cv2.CV_32F), cv2.multiply(own, on_lips, dtype=cv2.CV_32F))
    return cast("Pixels", cv2.add(patch, added, dtype=cv2.CV_8U))
