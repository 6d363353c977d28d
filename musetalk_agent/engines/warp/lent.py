"""The mouth of a frame that lends its lips, enlarged once, so that a frame's lips are fetched from it by plain linear sampling."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from musetalk_agent.engines.warp.geometry import CHIN, SAMPLES, Floats, Shape
from musetalk_agent.media_types import Box, Pixels

FINER = 2
"""Pixels of the enlarged picture to one of the frame. Linear sampling of it is within 3 levels of bicubic sampling of the frame
(within 1 at the 99.9th percentile), and costs half."""
AROUND = 0.65
"""How far the picture reaches to the left and right of the mouth's middle (eye distances)."""
ABOVE, BELOW = 0.10, 0.10
"""How far it reaches above the nose's base and below the chin (eye distances)."""


@dataclass(frozen=True)
class Lent:
    """A part of a frame's face window, enlarged.

    Args:
        pixels: uint8 `[h, w, 4]`, BGR and nothing, for four channels are sampled twice as fast as three; every other row and column
            is the frame's own.
        offset: what is to be added to `FINER` times a place in the frame (x, y in pixels) to make it one in `pixels`.
    """

    pixels: Pixels
    offset: tuple[float, float]

    @classmethod
    def of(cls, face: Pixels, window: Box, frame: Floats, shape: Shape, top: float) -> Lent:
        """Of the pixels `face` of a frame's `window`; its mouth is `shape`, and `frame` leads from mouth space to its pixels."""
        bottom = float(shape.curves[CHIN][SAMPLES // 2]) + BELOW
        corners = [(shape.centre + side * AROUND, v) for side in (-1, 1) for v in (top - ABOVE, bottom)]
        places = np.array(corners, np.float32) @ frame[:, :2].T + frame[:, 2] - (window.x0, window.y0)
        x0, y0 = np.clip(np.floor(places.min(0)).astype(int), 0, (window.width - 1, window.height - 1)).tolist()
        x1, y1 = np.clip(np.ceil(places.max(0)).astype(int), (x0 + 1, y0 + 1), (window.width, window.height)).tolist()
        part = cv2.cvtColor(face[y0:y1, x0:x1], cv2.COLOR_BGR2BGRA)
        finer = np.array([[FINER, 0, 0], [0, FINER, 0]], np.float64)
        size = FINER * (x1 - x0), FINER * (y1 - y0)
        pixels = cv2.warpAffine(part, finer, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return cls(np.asarray(pixels, np.uint8), (-FINER * (window.x0 + x0), -FINER * (window.y0 + y0)))
