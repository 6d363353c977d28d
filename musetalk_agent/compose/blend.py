"""Blending a patch over the idle picture, bit for bit as Pillow's paste with a mask does it (which upstream uses)."""

from __future__ import annotations

import numpy as np

from musetalk_agent.media import Pixels


def paste(background: Pixels, patch: Pixels, mask: Pixels) -> Pixels:
    """`background` and `patch` uint8 `[h, w, 3]`, `mask` uint8 `[h, w]`; returns uint8 `[h, w, 3]`.

    Per channel `t = bg·(255-m) + fg·m + 128`, `out = ((t >> 8) + t) >> 8` (Pillow's BLEND; verified over all 65,536
    combinations in the numerics reference, §4).
    """
    weight = mask.astype(np.uint32)[..., None]
    mixed = background.astype(np.uint32) * (255 - weight) + patch.astype(np.uint32) * weight + 128
    blended: Pixels = (((mixed >> 8) + mixed) >> 8).astype(np.uint8)
    return blended
