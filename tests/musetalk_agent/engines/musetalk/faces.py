"""The demo avatar's face where a test wants it, in bundles made as `avatars` makes them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars import framing
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.media_types import Box, Pixels
from musetalk_agent.protocol.http import AvatarReport
from tests.musetalk_agent.engines.warp.faces import demo_picture, demo_points

Points = NDArray[np.float32]


def moved(x: float, y: float, scale: float, size: tuple[int, int]) -> tuple[Pixels, Points]:
    """The demo picture scaled and moved by (x, y) in a picture of `size` (width, height), and its mesh."""
    matrix = np.array([[scale, 0, x], [0, scale, y]], np.float64)
    picture = cv2.warpAffine(demo_picture(), matrix, size, flags=cv2.INTER_AREA, borderValue=(96, 96, 96))
    return np.asarray(picture, np.uint8), np.asarray(demo_points() * scale + (x, y), np.float32)


def bundle_of(folder: Path, frames: list[tuple[Pixels, Points]]) -> Bundle:
    """A bundle of pictures and their meshes, its face windows cut from the planes."""
    height, width = frames[0][0].shape[:2]
    landmarks = np.stack([points for _, points in frames])
    boxes = framing.face_windows(landmarks, width, height)
    planes = np.stack([cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420) for picture, _ in frames])
    faces = np.stack(
        [
            framing.to_bgr(framing.crop_i420(plane, (width, height), Box(*(int(v) for v in box))))
            for plane, box in zip(planes, boxes, strict=True)
        ]
    )
    report = AvatarReport(avatar_id="demo", frames=len(frames), width=width, height=height, fps=25)
    return Bundle(folder, width, height, 25, planes, landmarks, boxes, faces, report)


def frame_of(bundle: Bundle, idle_index: int) -> Pixels:
    """The whole idle frame, BGR."""
    return framing.to_bgr(np.ascontiguousarray(bundle.frames[idle_index]))
