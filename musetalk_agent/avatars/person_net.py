"""Where a person is in an image: MediaPipe's selfie segmentation on plain LiteRT.

The network sees the whole image, squeezed into its square as MediaPipe does, and where the face is small also the part around the
head, in which hair and shoulders have more of its pixels.
"""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from musetalk_agent.avatars.face import Points
from musetalk_agent.media_types import Box, Pixels
from musetalk_agent.weights import ModelStore

SEGMENTER = "face/selfie_segmentation.tflite"
_HEAD_SIDE = 3.4
"""Side of the part around the head, in widths of the face."""
_LARGE = 0.75
"""A part of this much of the image's shorter side shows nothing that the whole image does not."""
_RISE = 0.12
"""Share of the part's side over which it takes over from the whole image."""

Share = NDArray[np.float32]


class PersonNet:
    """The segmentation network. One per thread, as its interpreter is not thread-safe.

    Args:
        models: where the model files lie.

    Raises:
        WeightsMissing: its file is not there.
    """

    def __init__(self, models: ModelStore) -> None:
        self._net: Any = Interpreter(str(models.path(SEGMENTER)), num_threads=1)
        self._net.allocate_tensors()
        self._input = self._net.get_input_details()[0]["index"]
        self._output = self._net.get_output_details()[0]["index"]
        self._side = int(self._net.get_input_details()[0]["shape"][1])

    def person(self, bgr: Pixels, face: Points, size: tuple[int, int]) -> Share:
        """How sure each pixel is of a person, float32 `[h, w]`, 0 … 1, at `size` (width, height).

        Args:
            bgr: uint8 `[h, w, 3]`.
            face: its mesh, `[468, 2]` in pixels.
        """
        height, width = bgr.shape[:2]
        whole = _resized(self._run(bgr), size)
        part = _head(face, width, height)
        if part is None:
            return whole
        near = self._run(np.ascontiguousarray(bgr[part.y0 : part.y1, part.x0 : part.x1]))
        x0, x1 = (round(x * size[0] / width) for x in (part.x0, part.x1))
        y0, y1 = (round(y * size[1] / height) for y in (part.y0, part.y1))
        # at the image's own edge there is nothing to take over from
        open_sides = part.x0 > 0, part.x1 < width, part.y0 > 0, part.y1 < height
        weight = _window(x1 - x0, y1 - y0, open_sides)
        seen = whole[y0:y1, x0:x1]
        seen += (_resized(near, (x1 - x0, y1 - y0)) - seen) * weight
        return whole

    def _run(self, bgr: Pixels) -> Share:
        small = cv2.resize(bgr, (self._side, self._side), interpolation=cv2.INTER_AREA)
        rgb = cv2.cvtColor(small, cv2.COLOR_BGR2RGB).astype(np.float32) / np.float32(255)
        self._net.set_tensor(self._input, rgb[None])
        self._net.invoke()
        return cast("Share", self._net.get_tensor(self._output)[0, :, :, 0])


def _head(face: Points, width: int, height: int) -> Box | None:
    """The square around the head, within the image; None where it would be most of it."""
    low, high = face.min(0), face.max(0)
    side = _HEAD_SIDE * float(high[0] - low[0])
    if side > _LARGE * min(width, height) or side < 1:
        return None
    middle = (low + high) / 2
    x0, y0 = max(0, int(middle[0] - side / 2)), max(0, int(middle[1] - side / 2))
    return Box(x0, y0, min(width, int(x0 + side)), min(height, int(y0 + side)))


def _window(width: int, height: int, open_sides: tuple[bool, bool, bool, bool]) -> Share:
    """1 in the middle, falling to 0 at the sides that are open: left, right, top, bottom."""
    left, right, top, bottom = open_sides
    return np.asarray(np.minimum.outer(_ramp(height, top, bottom), _ramp(width, left, right)), np.float32)


def _ramp(length: int, first: bool, last: bool) -> Share:
    at = (np.arange(length, dtype=np.float32) + 0.5) / (length * _RISE)
    weight = np.ones(length, np.float32)
    if first:
        weight = np.minimum(weight, at)
    if last:
        weight = np.minimum(weight, at[::-1])
    return weight


def _resized(share: Share, size: tuple[int, int]) -> Share:
    return np.asarray(cv2.resize(share, size, interpolation=cv2.INTER_LINEAR), np.float32)
