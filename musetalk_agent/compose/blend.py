"""Blending a patch over the idle picture, bit for bit as Pillow's paste with a mask does it (which upstream uses)."""

from __future__ import annotations

import cv2
import numpy as np

from musetalk_agent.media import Pixels


def paste(background: Pixels, patch: Pixels, mask: Pixels) -> Pixels:
    """`background` and `patch` uint8 `[h, w, 3]`, `mask` uint8 `[h, w]`; returns uint8 `[h, w, 3]`.

    Per channel `t = bg·(255-m) + fg·m + 128`, `out = ((t >> 8) + t) >> 8` (Pillow's BLEND; verified over all 65,536
    combinations in the numerics reference, §4). Sixteen bits hold every step: `t` is at most 255·255 + 128 = 65,153, and with
    `t >> 8` added 65,407.
    """
    weight = cv2.cvtColor(
        mask, cv2.COLOR_GRAY2BGR
    )  # numpy multiplies equal shapes far faster than it broadcasts to threes
    mixed = np.multiply(patch, weight, dtype=np.uint16)
    mixed += np.multiply(background, np.invert(weight, out=weight), dtype=np.uint16)
    mixed += np.uint16(128)
    shifted = mixed >> 8
    shifted += mixed
    shifted >>= 8
    blended: Pixels = shifted.astype(np.uint8)
    return blended
