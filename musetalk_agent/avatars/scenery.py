"""Decodes a background image and scales it to cover the session's size. Runs in the decoder process only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from musetalk_agent.avatars import framing
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.picture_decoder import Size, decode_picture
from musetalk_agent.media_types import Box

FILE = "scenery.npy"


def write_scenery(
    source: Path, size: tuple[int, int], folder: Path, limits: AvatarLimits, allow: Callable[[int], object]
) -> None:
    """Writes the middle of the picture as I420 of `size` (width, height, even), uint8 `[h·3/2, w]`. Of one that moves
    it is the first frame.

    Raises:
        AvatarError: it cannot be used.
        MemoryError: it needs more than it was given.
    """
    width, height = size

    def target(own: Size) -> Size:
        scaled = framing.fit(own, width, height, limits).scaled
        return min(scaled[0], own[0]), min(scaled[1], own[1])

    picture = decode_picture(source.read_bytes(), "the background", limits, target=target, allow=allow)
    shape = framing.fit(picture.size, width, height, limits)
    allow(shape.scaled[0] * shape.scaled[1])
    planes = framing.to_i420(framing.scale(picture.pixels, shape))
    left, top = ((whole - shown) // 4 * 2 for whole, shown in zip(shape.scaled, size, strict=True))
    np.save(
        folder / FILE,
        framing.crop_i420(planes, shape.scaled, Box(left, top, left + width, top + height)),
        allow_pickle=False,
    )
