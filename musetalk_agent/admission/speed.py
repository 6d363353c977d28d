"""How slow this machine is by the one that the figures come from: a few frames encoded by one thread."""

from __future__ import annotations

import logging
import time
from fractions import Fraction

import av
import cv2
import numpy as np

from musetalk_agent.media_types import Pixels

log = logging.getLogger(__name__)

_SIDE, _FRAMES, _ROUNDS = 512, 10, 4
_REFERENCE_S = 0.0025
"""A frame of `_scene` on the machine where the table of `costs` was measured, as busy as it was then (least of a run: 0.0024)."""
_LIKE_THE_SDK = {"deadline": "realtime", "cpu-used": "-6", "lag-in-frames": "0"}


def slowness() -> float:
    """Seconds of a core for a frame of VP8 by those of the reference: 2 where everything takes twice as long; 1 where there is no
    encoder to ask. Blocks for about a sixth of a second of one core.

    The least of four rounds is taken: others who use the core's caches make it slower, nothing makes it faster.
    """
    try:
        return min(_rounds()) / _REFERENCE_S
    except (av.FFmpegError, ValueError) as error:  # a PyAV that was built without libvpx
        log.warning("the processor's speed is not measured", extra={"error": str(error)})
        return 1.0


def _rounds() -> list[float]:
    """Seconds of this thread for a frame, by round; the first, which begins with a key frame, is left out."""
    context = av.CodecContext.create("libvpx", "w")
    context.width = context.height = _SIDE
    context.pix_fmt, context.time_base, context.bit_rate = "yuv420p", Fraction(1, 25), 1_500_000
    context.thread_count, context.options = 1, _LIKE_THE_SDK
    frames = [av.VideoFrame.from_ndarray(picture, format="yuv420p") for picture in _scene()]
    taken = []
    for number in range(_ROUNDS + 1):
        begun = time.thread_time()
        for index, frame in enumerate(frames):
            frame.pts = number * _FRAMES + index
            context.encode(frame)
        taken.append((time.thread_time() - begun) / _FRAMES)
    return taken[1:]


def _scene() -> list[Pixels]:
    """I420 frames of something that sways and opens and shuts."""
    noise = np.random.default_rng(1).integers(0, 255, (_SIDE, _SIDE), dtype=np.uint8)
    still = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]  # None: a new array
    made = []
    for number in range(_FRAMES):
        planes = np.full((_SIDE * 3 // 2, _SIDE), 128, np.uint8)
        planes[:_SIDE] = np.roll(still, (number % 5, number % 7), (0, 1))
        cv2.circle(planes[:_SIDE], (_SIDE // 2, 350), 20 + 4 * (number % 6), 30, -1)
        made.append(planes)
    return made
