"""Puts a patch onto its idle frame: one copy of the frame's I420 planes, then work on the patch's box only."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.face import Points
from musetalk_agent.media_types import Box, Patch, Pixels, Tag, VideoFrame


def paste(background: Pixels, patch: Pixels, mask: Pixels) -> Pixels:
    """`background` and `patch` uint8 `[h, w, 3]`, `mask` uint8 `[h, w]`; returns uint8 `[h, w, 3]`.

    Per channel `t = bg·(255-m) + fg·m + 128`, `out = ((t >> 8) + t) >> 8` (Pillow's BLEND; verified over all 65,536
    combinations in a reference implementation). Sixteen bits hold every step: `t` is at most 255·255 + 128 = 65,153, and with
    `t >> 8` added 65,407.
    """
    weight = cv2.cvtColor(
        mask, cv2.COLOR_GRAY2BGR
    )  # numpy multiplies equal shapes far faster than it broadcasts to threes
    mixed = np.multiply(patch, weight, dtype=np.uint16)
    mixed += np.multiply(background, np.invert(weight, out=weight), dtype=np.uint16)
    mixed += np.uint16(128)
    shifted = mixed >> 8
    shifted += mixed
    shifted >>= 8
    blended: Pixels = shifted.astype(np.uint8)
    return blended


class Compositor:
    """Composes frames of one bundle; stateless, so any thread may call it.

    Args:
        idle_patch: the patch over each idle frame outside speech, by index; None for none.
    """

    def __init__(self, bundle: Bundle, idle_patch: Callable[[int], Patch | None] = lambda _: None) -> None:
        self._bundle = bundle
        self._idle_patch = idle_patch
        self._width, self._height = bundle.width, bundle.height

    def idle(self, idle_index: int) -> VideoFrame:
        """The idle frame; without a patch over it no copy is made, so its planes are read-only."""
        patch = self._idle_patch(idle_index)
        if patch is not None:
            return VideoFrame(self._planes(idle_index, patch), self._width, self._height, idle_index)
        return VideoFrame(self._bundle.frames[idle_index].reshape(-1), self._width, self._height, idle_index)

    def compose(self, idle_index: int, patch: Patch | None, tag: Tag | None = None) -> VideoFrame:
        """Idle frame `idle_index` with `patch` on it; without a patch, the idle frame."""
        if patch is None:
            return self.idle(idle_index)
        return VideoFrame(self._planes(idle_index, patch), self._width, self._height, idle_index, spoken=True, tag=tag)

    def face(self, idle_index: int) -> Points:
        """The mesh of the face in an idle frame, float32 `[468, 2]` in pixels."""
        return np.asarray(self._bundle.landmarks[idle_index])

    def _planes(self, idle_index: int, patch: Patch) -> Pixels:
        planes = np.array(self._bundle.frames[idle_index]).reshape(-1)
        pixels = patch.pixels
        if patch.mask is not None:
            pixels = paste(self._background(idle_index, patch.box), pixels, patch.mask)
        self._write(planes, patch.box, pixels)
        return planes

    def _background(self, idle_index: int, box: Box) -> Pixels:
        """BGR pixels of the idle frame in `box`, which lies within the face window."""
        window = self._bundle.box(idle_index)
        face = self._bundle.faces[idle_index]
        return np.asarray(face[box.y0 - window.y0 : box.y1 - window.y0, box.x0 - window.x0 : box.x1 - window.x0])

    def _write(self, planes: Pixels, box: Box, bgr: Pixels) -> None:
        """Converts `bgr` (even size) and writes it into the three planes at `box` (even coordinates)."""
        w, h = self._width, self._height
        converted = cv2.cvtColor(np.ascontiguousarray(bgr), cv2.COLOR_BGR2YUV_I420).reshape(-1)
        bw, bh = box.width, box.height
        luma, quarter = bw * bh, bw * bh // 4
        y = planes[: w * h].reshape(h, w)
        y[box.y0 : box.y1, box.x0 : box.x1] = converted[:luma].reshape(bh, bw)
        for index in range(2):
            start = w * h + index * (w * h // 4)
            plane = planes[start : start + w * h // 4].reshape(h // 2, w // 2)
            part = converted[luma + index * quarter : luma + (index + 1) * quarter].reshape(bh // 2, bw // 2)
            plane[box.y0 // 2 : box.y1 // 2, box.x0 // 2 : box.x1 // 2] = part
