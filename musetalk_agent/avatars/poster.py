"""The poster image of a prepared avatar."""

from __future__ import annotations

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle

SIDE_MOST = 640
"""Pixels of the longer side."""
_QUALITY = 85


def poster(bundle: Bundle) -> bytes:
    """A frame that shows its mouth, as JPEG of at most `SIDE_MOST` pixels a side. Reads the disk: call it in a thread."""
    planes = np.asarray(bundle.frames[int(bundle.with_mouth()[0])])
    picture = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420)
    scale = SIDE_MOST / max(bundle.width, bundle.height)
    if scale < 1:
        size = (max(1, round(bundle.width * scale)), max(1, round(bundle.height * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    made, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not made:
        raise ValueError(f"a picture of {bundle.width}×{bundle.height} cannot be written as JPEG")
    return bytes(data)
