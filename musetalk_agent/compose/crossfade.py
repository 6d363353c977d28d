"""Cross-fades between two clips: frames are moved towards each other along the optical flow where that brings them together, and
blended."""

from __future__ import annotations

import threading
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import Points
from musetalk_agent.compose.layers import laid
from musetalk_agent.media_types import Pixels, VideoFrame

_FLOW_WIDTH = 240
"""Pixels of the width at which the flow is found: a head's motion, not its skin."""
_BETTER = 0.7
"""The flow is of use where what differs after it is at most so much of what differed before; else pictures are only mixed."""

_HEAD = 1.0
"""How far from the middle of the face pixels move with it, in its widths (one sigma)."""

Flow = NDArray[np.float32]


class Crossfade:
    """One passage from a clip to another. Its flow is found once, at its first frame: a new one for each would tremble.

    Any thread may call it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flows: dict[tuple[int, ...], Flow] | None = (
            None  # by the size of a plane; none of them where the flow does not help
        )

    def between(
        self, before: VideoFrame, after: VideoFrame, share: float, old_face: Points, new_face: Points
    ) -> VideoFrame:
        """The picture `share` (0 … 1) of the way from one to the other, which have one size. The faces are their meshes, float32
        `[468, 2]` in pixels.
        """
        if (before.alpha is None) != (after.alpha is None):
            before, after = laid(before), laid(after)
        old, new = _planes(before), _planes(after)
        with self._lock:
            if self._flows is None:
                flow = _useful_flow(old[0], new[0], old_face, new_face)
                shapes = {plane.shape for plane in old} if flow is not None else set()
                self._flows = {shape: _scaled(flow, shape) for shape in shapes if flow is not None}
            flows = self._flows
        mixed = [_between(one, other, flows.get(one.shape), share) for one, other in zip(old, new, strict=True)]
        planes = np.concatenate([plane.reshape(-1) for plane in mixed[:3]])
        alpha = mixed[3] if len(mixed) > 3 else None
        return replace(after, i420=planes, alpha=alpha, behind=_behind(before.behind, after.behind, share))


def _behind(before: Pixels | None, after: Pixels | None, share: float) -> Pixels | None:
    """What is behind both, which stands still."""
    if before is None or after is None or np.shares_memory(before, after):
        return after
    return np.asarray(cv2.addWeighted(before, 1 - share, after, share, 0)[:, 0], np.uint8)


def _planes(frame: VideoFrame) -> list[Pixels]:
    """Y, U and V, uint8, and alpha where there is one."""
    luma, quarter = frame.width * frame.height, frame.width * frame.height // 4
    half = (frame.height // 2, frame.width // 2)
    flat = frame.i420.reshape(-1)
    planes = [
        flat[:luma].reshape(frame.height, frame.width),
        flat[luma : luma + quarter].reshape(half),
        flat[luma + quarter :].reshape(half),
    ]
    return planes if frame.alpha is None else [*planes, frame.alpha]


def _useful_flow(old: Pixels, new: Pixels, old_face: Points, new_face: Points) -> Flow | None:
    """Where each pixel of `old` goes in `new`, in pixels of a small picture, float32 `[h, w, 2]`; None where it does not help.

    The search begins with the head where its mesh goes; what is far from the head stays, whatever the light there does.
    """
    height, width = old.shape
    scale = min(1.0, _FLOW_WIDTH / width)
    size = (max(16, round(width * scale)), max(16, round(height * scale)))
    one, other = (np.asarray(cv2.resize(each, size, interpolation=cv2.INTER_AREA), np.uint8) for each in (old, new))
    near = _near(size, old_face * (size[0] / width))
    head = _head_motion(size, old_face * (size[0] / width), new_face * (size[0] / width))
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found = finder.calc(one, other, np.ascontiguousarray(head * near[:, :, None], np.float32))
    flow = np.asarray(cv2.GaussianBlur(found, (0, 0), 3) * np.minimum(1, 2 * near)[:, :, None], np.float32)
    flat = _flat(one)
    apart = float((np.abs(flat - _flat(other)) * near).sum())
    left = float((np.abs(flat - _flat(_moved(other, flow, 1.0))) * near).sum())
    return flow if left <= _BETTER * apart else None


def _flat(picture: Pixels) -> NDArray[np.float32]:
    """Without the slow changes of light."""
    grey = picture.astype(np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 20), np.float32)


def _grid(size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32))
    return x, y


def _near(size: tuple[int, int], face: Points) -> NDArray[np.float32]:
    """How near to the face each pixel is, 1 … 0, float32 `[h, w]`."""
    x, y = _grid(size)
    middle, reach = face.mean(0), max(1.0, _HEAD * float(np.ptp(face[:, 0])))
    return np.asarray(np.exp(-((x - middle[0]) ** 2 + (y - middle[1]) ** 2) / (2 * reach**2)), np.float32)


def _head_motion(size: tuple[int, int], old_face: Points, new_face: Points) -> Flow:
    """Where a mesh takes every pixel, float32 `[h, w, 2]`."""
    moved, _ = cv2.estimateAffinePartial2D(old_face, new_face, method=cv2.LMEDS)
    if moved is None:
        return np.zeros((size[1], size[0], 2), np.float32)
    x, y = _grid(size)
    to = np.stack([row[0] * x + row[1] * y + row[2] for row in moved], 2)
    return np.asarray(to - np.stack([x, y], 2), np.float32)


def _between(old: Pixels, new: Pixels, flow: Flow | None, share: float) -> Pixels:
    if flow is not None:
        old, new = _moved(old, flow, -share), _moved(new, flow, 1 - share)
    return np.asarray(cv2.addWeighted(old, 1 - share, new, share, 0), np.uint8)


def _scaled(flow: Flow, shape: tuple[int, ...]) -> Flow:
    height, width = shape[:2]
    factors = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    return np.asarray(cv2.resize(flow, (width, height)) * factors, np.float32)


def _moved(picture: Pixels, flow: Flow, by: float) -> Pixels:
    height, width = picture.shape
    step = np.float32(by)
    x = np.arange(width, dtype=np.float32)[None] + step * flow[:, :, 0]
    y = np.arange(height, dtype=np.float32)[:, None] + step * flow[:, :, 1]
    return np.asarray(cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)
