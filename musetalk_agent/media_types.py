"""The values that travel between stages, and the one place that converts between samples and frames.

Media time is an integer: audio counts samples, video counts frames. Frame `k` at `fps` frames per second begins at sample
`ceil(rate·k/fps)` of audio at `rate` samples per second, so at 16 kHz and 25 fps frame `k` is samples `[640k, 640k+640)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEATURE_RATE = 16_000
"""Samples per second that every feature extractor reads (Hz)."""

Pcm = NDArray[np.int16]
Feature = NDArray[np.float32]
Pixels = NDArray[np.uint8]


def frame_start(frame: int, fps: int, rate: int = FEATURE_RATE) -> int:
    """First sample of video frame `frame`: `ceil(rate·frame/fps)`."""
    return -(-rate * frame // fps)


def frames_begun(samples: int, fps: int, rate: int = FEATURE_RATE) -> int:
    """How many frames begin within the first `samples` samples: the frames a segment of that length has."""
    return (samples - 1) * fps // rate + 1 if samples > 0 else 0


def frames_complete(samples: int, fps: int, rate: int = FEATURE_RATE) -> int:
    """How many frames end at or before sample `samples`."""
    return samples * fps // rate


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels, `x0 ≤ x < x1`, `y0 ≤ y < y1`. Patches use even coordinates, so that chroma planes divide."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.y1 - self.y0

    def even(self, width: int, height: int) -> Box:
        """The smallest box with even coordinates around this one, within a frame of `width`×`height` (both even)."""
        return Box(
            max(0, self.x0) // 2 * 2,
            max(0, self.y0) // 2 * 2,
            min(width, (self.x1 + 1) // 2 * 2),
            min(height, (self.y1 + 1) // 2 * 2),
        )


@dataclass(frozen=True, slots=True)
class Cue:
    """A phoneme known beforehand: IPA symbol, and its samples `[start, end)` at 16 kHz from the segment's start.

    A voice knows all of its phonemes, and the mouth is made of them. One that was `found` in a sound only says when lips meet or
    tuck: between those, what the mouth network hears is more like a talker's mouth.
    """

    phoneme: str
    start: int
    end: int
    found: bool = False


@dataclass(frozen=True, slots=True)
class Tag:
    """Where a value belongs: segment (from 1), video frame within it (from 0), and the generation it was made for."""

    segment: int
    frame: int
    generation: int


@dataclass(frozen=True, slots=True)
class Patch:
    """The engine's output for one video frame.

    `pixels` is uint8 BGR `[h, w, 3]` for `box` (even coordinates). With `mask` (uint8 `[h, w]`) the compositor blends it over the
    idle frame the way upstream does; without one it replaces the idle pixels.
    """

    box: Box
    pixels: Pixels
    mask: Pixels | None = None


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """A finished frame: I420 planes one after the other, uint8 `[height·width·3/2]`, BT.601 limited range, contiguous.

    `idle_index` is the idle frame it was made from; `spoken` says that a patch lies on it.

    With `alpha`, uint8 `[height, width]`, it is the upper of two layers: its planes are those of a person times its share, and the
    picture is `i420 + (1 - alpha) · behind`, where `behind` are planes of the same size, or None for nothing. `compose.layers`
    joins them.
    """

    i420: Pixels
    width: int
    height: int
    idle_index: int
    spoken: bool = False
    tag: Tag | None = None
    alpha: Pixels | None = None
    behind: Pixels | None = None
