"""The person of a clip cut out by a matte, and the background that is shown instead."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from musetalk_agent.media_types import Pixels


@dataclass(frozen=True, eq=False)
class Matte:
    """The person of every idle frame, memory-mapped read-only.

    Args:
        alpha: uint8 `[n, h, w]`, 255 where there is nothing but the person.
        person: uint8 `[n, h·3/2, w]`, I420: the values of the person's own colours times its share, so that
            `person + (1 - share) · behind` is the picture. A chroma value's share is the mean of its four pixels'.
        blurred: uint8 `[n, h'·3/2, w']`, I420 in small: the clip's own background, blurred.
    """

    alpha: Pixels
    person: Pixels
    blurred: Pixels


@dataclass(frozen=True, eq=False)
class Scenery:
    """A picture behind the person, which stands still: I420 of the session's size, uint8 `[h·3/2, w]`."""

    planes: Pixels


@dataclass(frozen=True, eq=False)
class Cutout:
    """How a bundle is shown otherwise than it is: its matte, and what is behind.

    Args:
        scenery: the picture behind; None for the clip's own background, blurred, or for nothing.
        transparent: nothing is behind.
    """

    _last: list[tuple[int, Pixels]] = field(
        default_factory=list, init=False, repr=False
    )  # a still picture asks for one again

    matte: Matte
    scenery: Scenery | None = None
    transparent: bool = False

    def behind(self, idle_index: int) -> Pixels | None:
        """What is behind the person of an idle frame: I420 planes one after the other, uint8 `[h·w·3/2]`; None for nothing."""
        if self.transparent:
            return None
        if self.scenery is not None:
            return self.scenery.planes.reshape(-1)
        for index, planes in self._last:
            if index == idle_index:
                return planes
        height, width = self.matte.alpha.shape[1:]
        made = enlarged(self.matte.blurred[idle_index], width, height)
        made.flags.writeable = False
        self._last[:] = [(idle_index, made)]
        return made


def enlarged(i420: Pixels, width: int, height: int) -> Pixels:
    """I420 planes uint8 `[h'·3/2, w']` at another size (even), one after the other, uint8 `[h·w·3/2]`."""
    rows, columns = i420.shape[0] * 2 // 3, i420.shape[1]
    chroma = i420[rows:].reshape(2, rows // 2, columns // 2)
    made = np.empty(width * height * 3 // 2, np.uint8)
    luma, quarter = width * height, width * height // 4
    cv2.resize(i420[:rows], (width, height), dst=made[:luma].reshape(height, width))
    for index in range(2):
        plane = made[luma + index * quarter : luma + (index + 1) * quarter].reshape(height // 2, width // 2)
        cv2.resize(chroma[index], (width // 2, height // 2), dst=plane)
    return made


def plain(colour: tuple[int, int, int], width: int, height: int) -> Scenery:
    """A picture of one colour: red, green and blue, 0 … 255."""
    bgr = np.full((2, 2, 3), colour[::-1], np.uint8)
    y, u, v = (int(value) for value in cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420).reshape(-1)[[0, 4, 5]])
    planes = np.empty((height * 3 // 2, width), np.uint8)
    planes[:height] = y
    flat = planes.reshape(-1)
    flat[width * height : width * height * 5 // 4] = u
    flat[width * height * 5 // 4 :] = v
    return Scenery(planes)
