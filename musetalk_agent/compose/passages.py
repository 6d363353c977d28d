"""Where clips of one person go over into each other: at frames that look alike, as slowly as the rest of the difference needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.timeline import F, Passage, Timeline

_SIDE = 96
_COARSER = 4
_SAMPLES = 200
"""Frames of a clip that are looked at; longer ones are sampled."""
_PAIRS = 24
_ENTER_WITHIN = 10
"""Positions among which the moment is chosen, 0.4 s at 25 fps."""
_ENTER_FRAMES = 6
"""A gesture begins with one of its first frames."""
_FADE = (3, 50)
"""Positions. Two seconds is for clips that do not fit at all."""
_SHARE = 0.8
"""Of the clips' own pace, which a passage adds to what moves anyway: together less than one and a half."""
_LEAST_PACE = 0.4
"""Grey levels: a still picture has no pace of its own."""


@dataclass(frozen=True)
class Sketch:
    """A clip in small, for comparing: `pictures` float32 `[n, 96·96]`, grey levels, of every `stride`-th frame.

    `pace` is how much neighbouring frames differ at the most: the 99th percentile, in grey levels.
    """

    pictures: NDArray[np.float32]
    stride: int
    pace: float

    @cached_property
    def coarse(self) -> NDArray[np.float32]:
        """The pictures at 24×24, float32 `[n, 576]`: a search among thousands of pairs runs on the event loop."""
        count, side = len(self.pictures), _SIDE // _COARSER
        blocks = self.pictures.reshape(count, side, _COARSER, side, _COARSER)
        return np.ascontiguousarray(blocks.mean((2, 4)).reshape(count, -1))

    def row(self, frame: int) -> int:
        """The index in `pictures` of the frame nearest to this one."""
        return min(round(frame / self.stride), len(self.pictures) - 1)

    def of(self, frame: int) -> NDArray[np.float32]:
        """The picture of the frame nearest to this one."""
        return np.asarray(self.pictures[self.row(frame)])


def sketch(bundle: Bundle) -> Sketch:
    """Reads some hundred frames of the disk: call it in a thread."""
    count = len(bundle)
    stride = max(1, math.ceil(count / _SAMPLES))
    pictures = np.stack([_small(bundle, frame) for frame in range(0, count, stride)])
    begins = np.unique(np.linspace(0, max(0, count - 2), min(_PAIRS, max(1, count - 1))).astype(int))
    steps = [_differ(_small(bundle, k), _small(bundle, k + 1)) for k in begins] if count > 1 else [0.0]
    made = Sketch(pictures, stride, max(_LEAST_PACE, float(np.percentile(steps, 99))))
    _ = made.coarse  # in this thread
    return made


def enter(timeline: Timeline[F], free: int, sketches: dict[F, Sketch], face: F) -> Passage:
    """How what is shown from position `free` on goes over into a clip: to one of its first frames (into its home: to any)."""
    target = sketches[face]
    frames = range(0, face.frames, target.stride) if face is timeline.home else range(min(_ENTER_FRAMES, face.frames))
    among = target.coarse[[target.row(frame) for frame in frames]]
    first = timeline.settled(free)

    def apart(begin: int) -> NDArray[np.float32]:
        look = timeline.at(begin)
        shown = sketches[look.face]
        return np.asarray(np.abs(among - shown.coarse[shown.row(look.idle_index)]).mean(1))

    found = np.stack([apart(begin) for begin in range(first, first + _ENTER_WITHIN)])
    late, nearest = np.unravel_index(int(found.argmin()), found.shape)
    begin, frame = first + int(late), frames[int(nearest)]
    look = timeline.at(begin)
    shown = sketches[look.face]
    left = _differ(shown.of(look.idle_index), target.of(frame))
    return Passage(begin, frame, _fade(left, min(shown.pace, target.pace)))


def leave(timeline: Timeline[F], entered: Passage, sketches: dict[F, Sketch], face: F) -> Passage:
    """How a clip that was entered and is played once goes home: to the frame that looks most like its end."""
    home, played = sketches[timeline.home], sketches[face]
    end = played.row(face.frames - 1)
    nearest = int(np.abs(home.coarse - played.coarse[end]).mean(1).argmin())
    length = max(1, face.length - entered.frame)
    # a clip that is over by then stays at its last frame
    fade = _fade(_differ(home.pictures[nearest], played.pictures[end]), min(home.pace, played.pace))
    return Passage(entered.begin + max(entered.fade, length - fade), nearest * home.stride, fade)


def _fade(apart: float, pace: float) -> int:
    return max(_FADE[0], min(_FADE[1], math.ceil(apart / (_SHARE * pace))))


def _small(bundle: Bundle, frame: int) -> NDArray[np.float32]:
    luma = np.asarray(bundle.frames[frame][: bundle.height])
    return cv2.resize(luma, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)


def _differ(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).mean())
