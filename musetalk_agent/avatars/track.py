"""Follows one face through a clip: where it is in every frame, and what is to be said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, FaceNet, Points, crop_of
from musetalk_agent.avatars.smoothing import OneEuro
from musetalk_agent.errors import NoFaceInAvatar
from musetalk_agent.media import Pixels

_COUNT_EVERY = 12
"""Every how many frames all faces are counted, and a small one is searched for while none is seen: both cost time."""
_SECOND_FACE = 0.35
"""A face is another one in the picture when it is at least this much of the followed one's size."""
_SMOOTHING = OneEuro(min_cutoff_hz=1.5, beta=30.0, speed_cutoff_hz=6.0)
"""For points in units of the face's width: steadies a resting face to the mesh's noise floor, passes a closing mouth."""
_LISTED = 12


@dataclass
class FaceTracker:
    """Feeds frames one after the other; keeps the mesh of the largest face, or None where it is not seen."""

    net: FaceNet
    meshes: list[Points | None] = field(default_factory=list)
    several: int = 0
    counted: int = 0
    _last: Points | None = None
    _seen: Pixels | None = None

    def push(self, bgr: Pixels) -> None:
        """Takes the next frame, uint8 BGR `[h, w, 3]`. The same array again means the same picture."""
        if bgr is self._seen:
            self.meshes.append(self.meshes[-1])
            return
        self._seen = bgr
        rgb = cast("Pixels", cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        if len(self.meshes) % _COUNT_EVERY == 0:
            self._count(rgb)
        points = self.net.mesh(rgb, crop_of(self._last)) if self._last is not None else None
        if points is not None and not _plausible(points, rgb):
            points = None
        if points is None:
            points = self._find(rgb)
        self._last = points
        self.meshes.append(points)

    def _find(self, rgb: Pixels) -> Points | None:
        faces = self.net.detect(rgb)
        if not faces and len(self.meshes) % _COUNT_EVERY == 0:
            faces = self.net.search(rgb)
        for face in faces:
            points = self.net.settle(rgb, face)
            if points is not None and _plausible(points, rgb):
                return points
        return None

    def _count(self, rgb: Pixels) -> None:
        faces = self.net.detect(rgb)
        self.counted += 1
        self.several += len(faces) > 1 and faces[1].side >= _SECOND_FACE * faces[0].side


@dataclass(frozen=True)
class FaceTrack:
    """The followed face. `points` is float32 `[n, 468, 2]` in the clip's pixels, smoothed; `missing` are the frames without
    a face, whose points are their neighbours'; `several` is the share of looked-at frames that show more than one face."""

    points: NDArray[np.float32]
    missing: list[int]
    several: float


def finish(tracker: FaceTracker, fps: int) -> FaceTrack:
    """Fills the gaps and smooths over time.

    Raises:
        NoFaceInAvatar: fewer than half of the frames show a face.
    """
    total = len(tracker.meshes)
    missing = [k for k, points in enumerate(tracker.meshes) if points is None]
    if total - len(missing) < total / 2 or len(missing) == total:
        raise NoFaceInAvatar(
            f"{len(missing)} of {total} frames show no face (frames {_listed(missing)}); use a clip in which one face is "
            "seen from the front, at least 96 pixels wide.",
            value=len(missing),
        )
    seen = np.array([k for k, points in enumerate(tracker.meshes) if points is not None])
    known = np.stack([points for points in tracker.meshes if points is not None])
    raw = _filled(known, seen, total)
    width = float(np.median(raw[:, :, 0].max(1) - raw[:, :, 0].min(1)))
    smooth = _SMOOTHING.both_ways(raw / np.float32(width), float(fps)) * np.float32(width)
    return FaceTrack(smooth, missing, tracker.several / max(1, tracker.counted))


def _filled(known: NDArray[np.float32], seen: NDArray[np.int64], total: int) -> NDArray[np.float32]:
    """Points of every frame: between two frames that show the face they go along the straight line."""
    frames = np.arange(total)
    after = np.clip(np.searchsorted(seen, frames), 0, len(seen) - 1)
    before = np.clip(np.searchsorted(seen, frames, side="right") - 1, 0, len(seen) - 1)
    gap = seen[after] - seen[before]
    share = np.where(gap > 0, (frames - seen[before]) / np.maximum(gap, 1), 0.0).astype(np.float32)[:, None, None]
    filled: NDArray[np.float32] = known[before] * (1 - share) + known[after] * share
    return filled


def _plausible(points: Points, rgb: Pixels) -> bool:
    """A mesh that has left the picture or shrunk to nothing is no face, whatever the network's score."""
    height, width = rgb.shape[:2]
    low, high = points.min(0), points.max(0)
    eyes = float(np.linalg.norm(points[RIGHT_EYE] - points[LEFT_EYE]))
    inside = (min(high[0], width) - max(low[0], 0)) * (min(high[1], height) - max(low[1], 0))
    area = float((high - low).prod())
    return bool(high[0] > 0 and high[1] > 0 and low[0] < width and low[1] < height and eyes > 4 and inside > 0.4 * area)


def _listed(frames: list[int]) -> str:
    """`0–3, 7, 9` for frame numbers, at most `_LISTED` ranges."""
    ranges: list[list[int]] = []
    for frame in frames:
        if ranges and ranges[-1][1] == frame - 1:
            ranges[-1][1] = frame
        else:
            ranges.append([frame, frame])
    parts = [str(a) if a == b else f"{a}–{b}" for a, b in ranges[:_LISTED]]
    return ", ".join(parts) + (" …" if len(ranges) > _LISTED else "")
