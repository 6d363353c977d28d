"""Smooths generated faces over time without delaying them.

The network makes each face on its own, so lips, teeth and skin shimmer by a fraction of a pixel and by a few levels. Faces of one
session are averaged over time, place by place: where little has changed over many, where something moves over none. A place
that has moved stays free for a few frames, so that lips which have nearly met do meet. In fast speech places are freed sooner.
Places are the head's: what is shown follows it where it moves in the network's picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.avatar_settings import Smoothing

BLOCK = 4
"""Pixels of a side over which a change is averaged before it is judged: noise averages out, a moving lip does not."""
AROUND = 5
"""Blocks of a side over which the contrast is taken that a change is compared with."""
BESIDE = 5
"""Blocks of a side that are free when the one in their middle moves. With three, 47 levels of the open lips stayed around
a mouth that had shut (99.5th percentile, the painted mouth); with five, 20."""
LEAST_CONTRAST = 24.0
"""Levels; in flatter places a change of so many is compared with these."""
FORGETS = 0.3
"""A place that has moved counts as having moved so much of it one frame later, and so on."""
USUAL_RATE = 0.114
"""Mean change of a block from frame to frame in ordinary speech, as a share of its contrast (the painted mouth of the tests)."""
RATE_FRAMES = 10
"""Frames over which the rate of speech is averaged: 0.4 s at 25 a second, two syllables."""
LEAST_SHIFT = 0.05
"""Pixels by which the head has to move before what is shown is moved after it: linear interpolation costs detail."""
SOONEST, LATEST = 0.6, 1.25
"""By how much the rate of speech scales what counts as movement, in fast and in slow speech."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How much is averaged.

    Args:
        least: share of a new face that is taken where nothing moves: `1/least` frames are averaged, roughly.
        still, moving: change of a block, as a share of the contrast around it, up to which it is still, and from which on it
            moves. A share of 0.29 is an edge that has moved by 1.2 pixels of the network's 256.
    """

    least: float
    still: float
    moving: float


STRENGTHS: dict[Smoothing, Strength | None] = {
    "off": None,
    "light": Strength(0.25, 0.29, 0.68),
    "strong": Strength(0.18, 0.36, 0.79),
}


class FaceSmoother:
    """The faces of one session, in their order. One thread at a time.

    Args:
        strength: one of `STRENGTHS`.
    """

    def __init__(self, strength: Strength) -> None:
        self._strength = strength
        self.reset()

    def reset(self) -> None:
        """The next face is taken as it is."""
        self._shown: Pixels | None = None
        self._small: NDArray[np.float32] | None = None
        self._moved: NDArray[np.float32] | None = None
        self._rate = USUAL_RATE

    def follow(self, x: float, y: float) -> None:
        """The head has moved in the picture since the last face, by so many pixels to the right and down."""
        if self._shown is None or self._small is None or max(abs(x), abs(y)) < LEAST_SHIFT:
            return
        self._shown = _shifted(self._shown, x, y)
        self._small = _averaged(self._shown)

    def smoothed(self, face: Pixels) -> Pixels:
        """uint8 BGR `[h, w, 3]`, sides divisible by `BLOCK` and the same at each call; returns the face that is shown."""
        small = _averaged(face)
        if self._shown is None or self._small is None or self._shown.shape != face.shape:
            self._shown, self._small = face.copy(), small
            return self._shown
        difference = cv2.absdiff(small, self._small)
        change = np.maximum(np.maximum(difference[..., 0], difference[..., 1]), difference[..., 2])
        change /= np.maximum(_contrast(small), _contrast(self._small))
        self._rate += (float(change.mean()) - self._rate) / RATE_FRAMES
        if self._moved is not None:
            np.maximum(change, self._moved * np.float32(FORGETS), out=change)
        self._moved = change
        new = self._share_of_new(change)
        self._shown = self._mixed(face, self._shown, new)
        self._small += (small - self._small) * new[..., None]
        return self._shown

    def _mixed(self, face: Pixels, shown: Pixels, new: NDArray[np.float32]) -> Pixels:
        """The two faces by the share of the new one in each block; most blocks have the least share, and are mixed faster."""
        least = self._strength.least
        mixed = cast("Pixels", cv2.addWeighted(face, least, shown, 1 - least, 0))
        x, y, w, h = cv2.boundingRect((new > least).astype(np.uint8))
        if w:
            rows, cols = (slice(BLOCK * at, BLOCK * (at + size)) for at, size in ((y, h), (x, w)))
            share = np.ascontiguousarray(new[y : y + h, x : x + w])
            weight = cast("NDArray[np.float32]", cv2.resize(share, (BLOCK * w, BLOCK * h)))
            mixed[rows, cols] = cv2.blendLinear(face[rows, cols], shown[rows, cols], weight, 1 - weight)
        return mixed

    def _share_of_new(self, change: NDArray[np.float32]) -> NDArray[np.float32]:
        """How much of the new face is taken in each block, `least` … 1. Blocks beside one that moves are free, too:
        the outline of lips that have shut would stay on them."""
        wide = cv2.blur(cv2.dilate(change, np.ones((BESIDE, BESIDE), np.uint8)), (3, 3))
        scale = min(max(USUAL_RATE / max(self._rate, 1e-3), SOONEST), LATEST)
        still, moving = self._strength.still * scale, self._strength.moving * scale
        share = np.clip((wide - still) / (moving - still), self._strength.least, 1.0)
        return np.asarray(share, np.float32)


def _averaged(face: Pixels) -> NDArray[np.float32]:
    """The mean of each block, float32 `[h / BLOCK, w / BLOCK, 3]`."""
    size = face.shape[1] // BLOCK, face.shape[0] // BLOCK
    return np.asarray(cv2.resize(face, size, interpolation=cv2.INTER_AREA), np.float32)


def _shifted(picture: Pixels, x: float, y: float) -> Pixels:
    """A copy that is moved, by linear interpolation; its edges are repeated."""
    if max(abs(x), abs(y)) >= 1:
        moved = np.array([[1, 0, x], [0, 1, y]])
        size = picture.shape[1], picture.shape[0]
        return cast("Pixels", cv2.warpAffine(picture, moved, size, borderMode=cv2.BORDER_REPLICATE))
    across, down = (np.array([max(by, 0), 1 - abs(by), max(-by, 0)]) for by in (x, y))
    return cast("Pixels", cv2.filter2D(picture, -1, np.outer(down, across), borderType=cv2.BORDER_REPLICATE))


def _contrast(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """The range of values around each block in the channel that has the widest, at least `LEAST_CONTRAST`: float32 `[h, w]` of
    `[h, w, 3]`. A change is the widest over the channels, too: lips may differ from the skin in red alone."""
    around = np.ones((AROUND, AROUND), np.uint8)
    reach = cv2.subtract(cv2.dilate(small, around), cv2.erode(small, around))
    widest = np.maximum(np.maximum(reach[..., 0], reach[..., 1]), reach[..., 2])
    return np.asarray(np.maximum(widest, np.float32(LEAST_CONTRAST)), np.float32)
