"""Finds passages: cross-fades from one clip of a person into another, at frames that look alike, and as slowly as their remaining
difference needs."""

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
_LOOKED = 4
"""Frames whose edges are measured."""
_ENTER_WITHIN = 10
"""Positions among which the moment is chosen, 0.4 s at 25 fps."""
_ENTER_FRAMES = 6
"""A gesture begins with one of its first frames."""
_FADE = (3, 60)
"""Positions. The longest is for clips that do not fit at all."""
_SHARE = 0.5
"""Of the clips' own pace, which a passage adds to what moves anyway: together less than one and a half."""
_NEAR = 1.0
"""How far from the middle of the face pixels move with it, in its widths (one sigma); as `crossfade` moves them."""
_LEAST_PACE = 0.4
"""Grey levels: a still picture has no pace of its own."""


@dataclass(frozen=True)
class Sketch:
    """A clip in small, for comparing: `pictures` float32 `[n, 96·96]`, grey levels, of every `stride`-th frame.

    `heads` are where the faces are, float32 `[n, 2]` in pixels of the clip. `pace` is how much neighbouring frames differ at the
    most: the 99th percentile, in grey levels. `edges` is by how many levels a picture changes when its head moves by a pixel.
    """

    pictures: NDArray[np.float32]
    heads: NDArray[np.float32]
    stride: int
    pace: float
    edges: float

    @cached_property
    def coarse(self) -> NDArray[np.float32]:
        """The pictures at 24×24, float32 `[n, 576]`: a search among thousands of pairs runs on the event loop."""
        count, side = len(self.pictures), _SIDE // _COARSER
        blocks = self.pictures.reshape(count, side, _COARSER, side, _COARSER)
        return np.ascontiguousarray(blocks.mean((2, 4)).reshape(count, -1))

    def row(self, frame: int) -> int:
        """The index in `pictures` of the frame nearest to this one."""
        return min(round(frame / self.stride), len(self.pictures) - 1)


def sketch(bundle: Bundle) -> Sketch:
    """Reads some hundred frames of the disk: call it in a thread."""
    count = len(bundle)
    stride = max(1, math.ceil(count / _SAMPLES))
    pictures = np.stack([_small(bundle, frame) for frame in range(0, count, stride)])
    heads = np.stack([bundle.landmarks[frame].mean(0) for frame in range(0, count, stride)]).astype(np.float32)
    begins = np.unique(np.linspace(0, max(0, count - 2), min(_PAIRS, max(1, count - 1))).astype(int))
    steps = [_differ(_small(bundle, k), _small(bundle, k + 1)) for k in begins] if count > 1 else [0.0]
    edges = float(np.mean([_edges(bundle, int(k)) for k in begins[:: max(1, len(begins) // _LOOKED)]]))
    made = Sketch(pictures, heads, stride, max(_LEAST_PACE, float(np.percentile(steps, 99))), edges)
    _ = made.coarse  # in this thread
    return made


def enter(timeline: Timeline[F], free: int, sketches: dict[F, Sketch], face: F) -> Passage:
    """How what is shown from position `free` on goes over into a clip: to one of its first frames (into its home: to any)."""
    target = sketches[face]
    frames = range(0, face.frames, target.stride) if face is timeline.home else range(min(_ENTER_FRAMES, face.frames))
    rows = [target.row(frame) for frame in frames]
    among = target.coarse[rows]
    first = timeline.settled(free)

    def apart(begin: int) -> NDArray[np.float32]:
        look = timeline.at(begin)
        shown = sketches[look.face]
        row = shown.row(look.idle_index)
        mixed = np.abs(among - shown.coarse[row]).mean(1)
        return np.asarray(np.maximum(mixed, _moved(shown, row, target, rows)))

    found = np.stack([apart(begin) for begin in range(first, first + _ENTER_WITHIN)])
    late, nearest = np.unravel_index(int(found.argmin()), found.shape)
    begin, frame = first + int(late), frames[int(nearest)]
    look = timeline.at(begin)
    shown = sketches[look.face]
    return Passage(begin, frame, _fade(shown, shown.row(look.idle_index), target, target.row(frame)))


def leave(timeline: Timeline[F], entered: Passage, sketches: dict[F, Sketch], face: F) -> Passage:
    """How a clip that was entered and is played once goes home: to the frame that looks most like its end."""
    home, played = sketches[timeline.home], sketches[face]
    end = played.row(face.frames - 1)
    mixed, moved = (
        np.abs(home.coarse - played.coarse[end]).mean(1),
        _moved(played, end, home, list(range(len(home.heads)))),
    )
    nearest = int(np.maximum(mixed, moved).argmin())
    length = max(1, face.length - entered.frame)
    # a clip that is over by then stays at its last frame
    fade = _fade(played, end, home, nearest)
    return Passage(entered.begin + max(entered.fade, length - fade), nearest * home.stride, fade)


def _fade(one: Sketch, row: int, other: Sketch, its_row: int) -> int:
    """Positions from one picture to another. A head that moves far changes more on its way than its ends differ."""
    apart = _differ(one.pictures[row], other.pictures[its_row])
    apart = max(apart, float(_moved(one, row, other, [its_row])[0]))
    return max(_FADE[0], min(_FADE[1], math.ceil(apart / (_SHARE * min(one.pace, other.pace)))))


def _moved(one: Sketch, row: int, other: Sketch, rows: list[int]) -> NDArray[np.float32]:
    """How much the picture changes on the way of the head to where it is in other pictures, in levels, float32 `[rows]`."""
    way = np.linalg.norm(other.heads[rows] - one.heads[row], axis=1)
    return np.asarray(max(one.edges, other.edges) * way, np.float32)


def _edges(bundle: Bundle, frame: int) -> float:
    luma = np.asarray(bundle.frames[frame][: bundle.height]).astype(np.float32)
    points = np.asarray(bundle.landmarks[frame])
    across, down = np.abs(np.diff(luma, axis=1))[1:], np.abs(np.diff(luma, axis=0))[:, 1:]
    y, x = np.mgrid[1 : bundle.height, 1 : bundle.width].astype(np.float32)
    middle, reach = points.mean(0), max(1.0, _NEAR * float(np.ptp(points[:, 0])))
    near = np.exp(-((x - middle[0]) ** 2 + (y - middle[1]) ** 2) / (2 * reach**2))
    return float((np.minimum(1, 2 * near) * (across + down) / 2).sum() / luma.size)


def _small(bundle: Bundle, frame: int) -> NDArray[np.float32]:
    luma = np.asarray(bundle.frames[frame][: bundle.height])
    return cv2.resize(luma, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)


def _differ(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).mean())
