"""Finds cuts to another shot in a clip. Only frames that show a face are compared: a black or empty stretch is not a cut by
itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels

_SIDE = 48
"""Side of the thumbnails that are compared, in pixels."""
_TIMES, _LEVELS = 4.0, 2.0
"""A cut changes the frame by more than this many times its neighbours' change, plus this many levels."""
_ALIKE = 0.98
"""Images that correlate better than this are one shot. Neighbours within clips of talkers measured 0.997 and more, joins of two
clips of one person 0.49 to 0.99 (median 0.80), of two persons 0.25 to 0.98 (0.55)."""
_OTHER = 0.5
"""Neighbours that correlate less than this are two shots, however much else moves."""
_BLENDED = 0.1, 0.85, 15.0
"""In the middle of a cross-fade: the frame differs from the mean of those before and after by at most this share of their own
difference; those two correlate less than the second number and differ by more levels than the third."""
_FADES = 6, 12
"""Half the lengths, in frames, at which cross-fades are looked for."""
_APART = 0.75
"""The same for the images before and after a stretch without a face, in which people move."""


@dataclass(frozen=True, slots=True)
class FrameDifference:
    """How two thumbnails differ: mean difference in levels, and correlation, which light hardly lowers."""

    levels: float
    correlation: float

    @classmethod
    def between(cls, one: Pixels, other: Pixels) -> FrameDifference:
        """Compares two uint8 `[h, w]` of one shape."""
        a, b = one.astype(np.float32), other.astype(np.float32)
        levels = float(np.abs(a - b).mean())
        a, b = a - a.mean(), b - b.mean()
        power = float((a * a).sum() * (b * b).sum())
        return cls(levels, float((a * b).sum()) / power**0.5 if power > 0 else 1.0)


def thumbnail(bgr: Pixels) -> Pixels:
    """The thumbnail of a frame, grey, uint8 `[48, 48]`."""
    step = max(
        1, min(bgr.shape[:2]) // (2 * _SIDE)
    )  # every pixel of a large frame would cost more than the answer is worth
    picture = cv2.resize(np.ascontiguousarray(bgr[::step, ::step]), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return cast("Pixels", cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))


def cut_between(one: Pixels, other: Pixels) -> bool:
    """Whether two thumbnails certainly belong to two shots."""
    return FrameDifference.between(one, other).correlation < _OTHER


def find_cuts(pictures: list[Pixels], frames: NDArray[np.int64]) -> list[int]:
    """Frames at which another shot begins, ascending.

    `pictures` are the thumbnails of all frames (the same array for a repeated frame), `frames` the numbers, ascending, of
    those that show a face.
    """
    kept = [frames[0]] if len(frames) else []
    for frame in frames[1:]:
        if pictures[frame] is not pictures[kept[-1]]:
            kept.append(frame)
    changes = [FrameDifference.between(pictures[a], pictures[b]) for a, b in pairwise(kept)]
    gaps = [any(pictures[k] is not pictures[a] for k in range(a + 1, b)) for a, b in pairwise(kept)]
    found = []
    for k, (change, gap) in enumerate(zip(changes, gaps, strict=True)):
        beside = [changes[n].levels for n in (k - 1, k + 1) if 0 <= n < len(changes) and not gaps[n]]
        if gap or not beside:
            other = change.correlation < _APART
        else:
            sudden = change.levels > _TIMES * max(beside) + _LEVELS
            other = change.correlation < _OTHER or (sudden and change.correlation < _ALIKE)
        if other:
            found.append(int(kept[k + 1]))
    faded = [int(kept[k]) for fade in _fades([pictures[k] for k in kept]) for k in fade]
    return sorted({*found, *faded})


def _fades(pictures: list[Pixels]) -> list[tuple[int, int]]:
    """Cross-fades: for each the first image that counts as none of the shot before it, and the first of the shot after it."""
    most, alike, levels = _BLENDED
    found: list[tuple[float, int]] = []
    for k in range(len(pictures)):
        for half in _FADES:
            if half <= k < len(pictures) - half - 1:
                before, after = pictures[k - half], pictures[k + half]
                change = FrameDifference.between(before, after)
                if change.correlation < alike and change.levels > levels:
                    mean = (before.astype(np.float32) + after) / 2
                    rest = float(np.abs(pictures[k] - mean).mean()) / change.levels
                    if rest < most:
                        found.append((rest, k))
    reach = _FADES[-1]
    middles: list[int] = []
    for _, k in sorted(found):
        if all(abs(k - other) > 2 * reach for other in middles):
            middles.append(k)
    return [(max(1, k - reach), min(k + reach, len(pictures) - 1)) for k in sorted(middles)]


_JUMP_LEVELS, _JUMP_ALIKE = 0.75, 0.99
"""In place of `_LEVELS` and `_ALIKE`, for dubs: one that misses a cut changes the frame after it, and one too many costs little.
Found of 48 joins of two clips of one GRID talker, framed alike: 46, with the others 44. In 1,650 frames of 22 clips: none, with
either."""
_SAME = 0.05
"""Levels under which a frame repeats the one before, as films at a raised rate do: it says nothing of how quickly things move."""
_WAIT_FRAMES = 4
PLAIN = 3.0
"""Standard deviation of a thumbnail, in levels, under which it shows nothing to compare: black, a title's background."""


class CutFinder:
    """Cuts of a film of any length, frame by frame, by the rules of `find_cuts`; an empty stretch is a shot of its own.

    What looks like a cut is one if the next frame that differs changes far less, so some decisions are a few frames late.
    """

    def __init__(self) -> None:
        self._last: Pixels | None = None
        self._before: float | None = None  # levels of the last change within this shot
        self._doubted: float | None = None
        self._late = 0  # frames without a decision: the doubtful one, and those that repeat it

    def push(self, picture: Pixels) -> list[bool]:
        """Takes the next frame's thumbnail; says of the oldest frames without a decision, in order, whether a shot begins there."""
        last = self._last
        if last is None:
            self._last = picture
            return [True]
        change = FrameDifference.between(last, picture)
        empty = float(last.std()) < PLAIN, float(picture.std()) < PLAIN
        if empty[0] != empty[1] or (change.correlation < _OTHER and not empty[1]):
            found = [*self._decided(change.levels), True]
            self._before, self._last = None, picture
            return found
        if change.levels < _SAME or empty[1]:
            if self._doubted is None:
                return [False]
            self._late += 1
            return self._decided(None) if self._late > _WAIT_FRAMES else []
        self._last = picture
        found = self._decided(change.levels)
        if change.correlation < _JUMP_ALIKE and change.levels > _TIMES * (self._before or 0.0) + _JUMP_LEVELS:
            self._doubted, self._late = change.levels, 1
            return found
        self._before = change.levels
        return [*found, False]

    def flush(self) -> list[bool]:
        """The last decisions, at the film's end."""
        return self._decided(None)

    def _decided(self, after: float | None) -> list[bool]:
        """Decides on the doubtful frame by the change that follows; None where none does."""
        doubted, late = self._doubted, self._late
        if doubted is None:
            return []
        self._doubted, self._late = None, 0
        cut = after is None or doubted > _TIMES * after + _JUMP_LEVELS
        if after is None and self._before is None:
            cut = False
        self._before = None if cut else doubted
        return [cut, *[False] * (late - 1)]


def longest_shot(total: int, frames: NDArray[np.int64], at: list[int]) -> tuple[int, int]:
    """First frame, and the one after the last, of the shot that shows the face in most frames, for `find_cuts` of `total` frames.

    Frames without a face between two shots belong to neither.
    """
    bounds = [0, *at, total]
    shots = [frames[(frames >= a) & (frames < b)] for a, b in pairwise(bounds)]
    best = max(range(len(shots)), key=lambda k: len(shots[k]))
    return bounds[best], total if best == len(at) else int(shots[best][-1]) + 1
