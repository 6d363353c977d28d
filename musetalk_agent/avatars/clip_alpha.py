"""The alpha channel of a clip: stored beside its frames, and cropped as they are."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from musetalk_agent.avatars.bundle import ALPHA_FILE, ArrayWriter, read_rows
from musetalk_agent.media_types import Box, Pixels

_OPAQUE = 255
_LEAST_SHARE = 0.01
"""So much of all pixels must be more transparent than not: a picture with rounded corners is no cut-out person."""


def colours(frame: Pixels) -> Pixels:
    """The colours of a frame, uint8 `[h, w, 3]`, contiguous, whether it has alpha beside them or not."""
    return np.ascontiguousarray(frame[..., :3])


class ClipAlpha:
    """Takes one frame after the other. Nothing is written before the first that is not opaque.

    Args:
        folder: where the bundle is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: ArrayWriter | None = None
        self._rows = self._clear = self._pixels = 0

    def take(self, frame: Pixels) -> None:
        """Takes the alpha of a frame, uint8 `[h, w, 4]`, or `[h, w, 3]` for an opaque one. Raises OSError."""
        height, width, channels = frame.shape
        opaque = np.full((height, width), _OPAQUE, np.uint8)
        if channels == 4 and self._writer is None:
            self._writer = ArrayWriter(self._folder / "scaled-alpha.npy")
            for _ in range(self._rows):
                self._writer.append(opaque)
        if self._writer is not None:
            alpha = frame[..., 3] if channels == 4 else opaque
            self._clear += int((alpha <= _OPAQUE // 2).sum())
            self._writer.append(alpha)
        self._rows += 1
        self._pixels += width * height

    def finish(self, start: int, count: int, box: Box) -> None:
        """Writes the alpha of the frames from `start` on as the bundle's, the part `box` of each; none where hardly anything is
        clear.

        Raises OSError.
        """
        self.close()
        scaled = self._folder / "scaled-alpha.npy"
        if self._writer is not None and self._clear >= _LEAST_SHARE * self._pixels:
            with closing(ArrayWriter(self._folder / ALPHA_FILE)) as writer:
                for alpha in read_rows(scaled, start, count):
                    writer.append(alpha[box.y0 : box.y1, box.x0 : box.x1])
        scaled.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file in the making. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()
