"""How much memory the frames of a video take, by their size and pixel format: what decides on threads, and what is refused."""

from __future__ import annotations

import os
from fractions import Fraction

from av.video.codeccontext import VideoCodecContext

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarTooLarge

_THREADS_MAX = 4
_THREADS_BYTES = 50_000_000
"""Every thread holds a frame of its own: so much they may hold together. More than four do not help a clip of a minute."""
_PLAIN_BYTES = Fraction(3, 2)
"""Of a pixel in 4:2:0 of 8 bits. Most decoders keep six to nine frames of any kind: with more a pixel, there may be fewer."""
_LAST_FRAME_ONLY = frozenset({"png", "qtrle"})
"""Decoders that keep one frame at most, though not every frame stands alone."""


def threads(context: VideoCodecContext) -> int:
    """How many threads decode a video whose size and pixel format are known."""
    return max(1, min(_THREADS_MAX, os.cpu_count() or 1, _THREADS_BYTES // max(1, _frame_bytes(context))))


def check_rich(context: VideoCodecContext, two_decoders: bool, limits: AvatarLimits) -> None:
    """Refuses a large video whose frames take more memory than those of 8 bits in 4:2:0.

    Args:
        context: whose size and pixel format are known.
        two_decoders: whether alpha is a second video, as large as the first.
        limits: `rich_pixels` is the limit.

    Raises:
        AvatarTooLarge: too many pixels for its kind.
    """
    alone = context.codec.intra_only or context.codec.name in _LAST_FRAME_ONLY
    pixels = context.width * context.height
    frame_bytes = _frame_bytes(context) * (2 if two_decoders else 1)
    odd = context.width + context.height + 1  # a side of chroma is rounded up
    if alone or pixels <= limits.rich_pixels or frame_bytes <= pixels * _PLAIN_BYTES + odd:
        return
    form = "with alpha" if two_decoders else f"in {context.pix_fmt}"
    raise AvatarTooLarge(
        f"The video is {context.width}×{context.height} {form}, which takes more memory than is given to one; at most "
        f"{limits.rich_pixels} pixels a frame are allowed of this kind. Scale it down, or export it with 8 bits in 4:2:0 "
        "without alpha (the usual H.264).",
        limit=limits.rich_pixels,
        value=pixels,
    )


def _frame_bytes(context: VideoCodecContext) -> int:
    """Bytes of a decoded frame; 0 where its pixel format is not known."""
    parts = context.format.components if context.format else ()
    return sum(part.width * part.height * -(-part.bits // 8) for part in parts)
