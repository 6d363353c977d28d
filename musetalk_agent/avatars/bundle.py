"""A prepared avatar on disk: everything derived from the clip, in formats that cannot run code.

Layout of a bundle's folder (written whole and renamed into place, see `cache`):

    bundle.json        schema version, key, size, rate, report
    frames.npy         uint8 [frames, height·3/2, width]: I420, BT.601 limited range
    landmarks.npy      float32 [frames, 468, 2]: mesh points in pixels of the frame, smoothed over time
    boxes.npy          int32 [frames, 4]: x0, y0, x1, y1 of the face window (even, one size for all frames)
    faces.npy          uint8 [frames, h, w, 3]: BGR pixels of the face window
    mouths.npy         float32 [frames]: how far a mouth may be drawn on the frame, 0 … 1
    engines/<fingerprint>/…   what an engine derived for itself
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Box, Pixels
from musetalk_agent.protocol.http import AvatarReport

SCHEMA_VERSION = 4


@dataclass(frozen=True)
class Bundle:
    """A prepared avatar, memory-mapped read-only; shared by every session that shows it.

    Args:
        path: the bundle's folder.
        width, height: size of the published picture, both even.
        fps: frames per second of the frames.
        frames: uint8 `[n, height·3/2, width]`, I420.
        landmarks: float32 `[n, 468, 2]`, pixels; the MediaPipe face mesh (x right, y down).
        boxes: int32 `[n, 4]`, the face window of each frame.
        faces: uint8 `[n, h, w, 3]`, BGR pixels of the face window.
        report: the quality report.
        mouths: float32 `[n]`, 0 … 1: 0 on frames that show no mouth (no face, a covered mouth), on which nothing is drawn; it
            rises to 1 over the frames beside them. None where every frame shows its mouth.
    """

    path: Path
    width: int
    height: int
    fps: int
    frames: Pixels
    landmarks: NDArray[np.float32]
    boxes: NDArray[np.int32]
    faces: Pixels
    report: AvatarReport
    mouths: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return int(self.frames.shape[0])

    def box(self, pose: int) -> Box:
        """Face window of idle frame `pose`."""
        x0, y0, x1, y1 = (int(v) for v in self.boxes[pose])
        return Box(x0, y0, x1, y1)

    def mouth(self, pose: int) -> float:
        """How far a mouth may be drawn on idle frame `pose`, 0 … 1."""
        return 1.0 if self.mouths is None else float(self.mouths[pose])

    def with_mouth(self) -> NDArray[np.int64]:
        """The frames that show their mouths best: those on which it is drawn whole, else any part of it, else all of them."""
        if self.mouths is None or not self.mouths.any():
            return np.arange(len(self))
        whole = np.flatnonzero(self.mouths >= 1)
        return whole if len(whole) else np.flatnonzero(self.mouths > 0)

    def engine_path(self, fingerprint: str) -> Path:
        """Where an engine keeps its artefacts."""
        return self.path / "engines" / fingerprint
