"""Idle frames' lower faces, enlarged once: sampled linearly, they give what bicubic sampling of the frame gives, in less time.

On disk, in the engine's folder of the bundle (written whole and renamed into place, read by memory map, never pickle):

    mouths.npy      uint8 [n, FINER_Y·h, FINER_X·w, 4]: those that `places` names, as in `EnlargedMouth`
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.arrays import damage_errors, map_array
from musetalk_agent.avatars.bundle import ArrayWriter, Bundle
from musetalk_agent.engines.warp.articulation import LOWEST_CHIN
from musetalk_agent.engines.warp.mouth_space import CHIN, NECK, REACH, SAMPLES, Floats, MouthShape
from musetalk_agent.media_types import Box, Pixels

FILE = "mouths.npy"
FINER_X, FINER_Y = 2, 3
"""Pixels of the enlarged image to one of the frame. Mouths move up and down more than to the sides."""
HALVES = ((0, 0, 1, 0, 0), (0, -0.117, 0.617, 0.617, -0.117))
THIRDS = ((0, 0, 1, 0, 0), (0, -0.133, 0.828, 0.355, -0.05), (0, -0.05, 0.355, 0.828, -0.133))
"""Shares of the pixels from two before to two behind in what lies 0, 1/2 (1/3, 2/3) behind a pixel. With them linear sampling of
the enlarged image is as near as can be to OpenCV's bicubic sampling (a = −0.75) of the frame, by least squares over the demo
picture: 99.7 % of the values of a speaking mouth's skin are within a level, all within 6."""
ABOVE, AROUND = 0.03, 0.04
"""How far an image reaches above the nose's base, and beyond the lowest chin's patch below and to the sides (eye distances)."""


@dataclass(frozen=True)
class EnlargedMouth:
    """A part of a frame's face window, enlarged.

    Args:
        pixels: uint8 `[h, w, 4]`, BGR and nothing, for four channels are sampled twice as fast as three; every third row of every
            other column is the frame's own.
        offset: what is to be added to `FINER_X` (`FINER_Y`) times a place in the frame, in pixels, to make it one in `pixels`.
    """

    pixels: Pixels
    offset: tuple[float, float]

    @classmethod
    def of(cls, face: Pixels, window: Box, part: Box) -> EnlargedMouth:
        """Of the pixels `face` of a frame's `window`, in which `part` lies."""
        inside = face[part.y0 - window.y0 : part.y1 - window.y0, part.x0 - window.x0 : part.x1 - window.x0]
        pixels = np.zeros((FINER_Y * part.height, FINER_X * part.width, 4), np.uint8)
        for row, down in enumerate(np.array(THIRDS, np.float32)):
            for column, right in enumerate(np.array(HALVES, np.float32)):
                between = cv2.sepFilter2D(inside, cv2.CV_8U, right, down, borderType=cv2.BORDER_REPLICATE)
                pixels[row::FINER_Y, column::FINER_X, :3] = between
        pixels[1 - FINER_Y :] = pixels[-FINER_Y]  # the last pixels are repeated beyond the edge
        pixels[:, 1 - FINER_X :] = pixels[:, -FINER_X, None]
        return cls.at(pixels, part)

    @classmethod
    def at(cls, pixels: Pixels, part: Box) -> EnlargedMouth:
        """`pixels` are those of `part` of the image, enlarged."""
        return cls(pixels, (-FINER_X * part.x0, -FINER_Y * part.y0))


def places(
    bundle: Bundle, frames: Floats, rests: tuple[MouthShape, ...], idle_shapes: tuple[MouthShape, ...], top: float
) -> NDArray[np.int32]:
    """The part of each face window that a patch may take pixels from, all of one size: int32 `[n, 4]` (x0, y0, x1, y1)."""
    windows = np.asarray(bundle.boxes, np.int64)
    low, high = np.empty((2, len(frames), 2))
    for k, (frame, rest, own) in enumerate(zip(frames, rests, idle_shapes, strict=True)):
        middle = SAMPLES // 2
        chin = max(float(rest.curves[CHIN][middle]) + LOWEST_CHIN, float(own.curves[CHIN][middle]))
        sides = min(rest.centre, own.centre) - REACH - AROUND, max(rest.centre, own.centre) + REACH + AROUND
        corners = np.array([(u, v) for u in sides for v in (top - ABOVE, chin + NECK + AROUND)])
        at = corners @ frame[:, :2].T + frame[:, 2]
        low[k], high[k] = np.floor(at.min(0)), np.ceil(at.max(0)) + 1
    most = windows[0, 2:] - windows[0, :2]
    size = np.clip(np.ceil((high - low).max(0)), 1, most).astype(np.int64)
    begin = np.clip(low, windows[:, :2], windows[:, 2:] - size).astype(np.int64)
    return np.hstack([begin, begin + size]).astype(np.int32)


def save(pixels: Iterable[Pixels], folder: Path) -> None:
    """Writes the enlarged lower faces of all idle frames into `folder`, whole or not at all. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(handle)
    try:
        writer = ArrayWriter(Path(name))
        try:
            for mouth in pixels:
                writer.append(mouth)
        finally:
            writer.close()
        Path(name).replace(folder / FILE)
    finally:  # no partial file stays; one that was whole has been moved
        Path(name).unlink(missing_ok=True)


def load(parts: NDArray[np.int32], folder: Path) -> Pixels:
    """What `save` wrote for these places, memory-mapped.

    Raises FileNotFoundError where there is nothing, and DamagedArrays where it is not whole.
    """
    path = folder / FILE
    with damage_errors(FILE):
        mapped = map_array(path)
        x0, y0, x1, y1 = parts[0].tolist()
        if mapped.shape != (len(parts), FINER_Y * (y1 - y0), FINER_X * (x1 - x0), 4) or mapped.dtype != np.uint8:
            raise ValueError(f"{FILE} has the shape {mapped.shape}")
        if path.stat().st_size != mapped.nbytes + mapped.offset:
            raise ValueError(f"{FILE} has the wrong size")
    return np.asarray(mapped)  # views of a memmap take microseconds each
