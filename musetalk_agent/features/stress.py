"""Where in speech a syllable is stressed: by how much its sound rises above what was heard just before."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from musetalk_agent.media_types import Pcm, frame_start

_FLOOR_DB = -50.0
"""Levels of full scale (a square wave is 0 dB) below this count as this: silence has no loudness to rise from."""
_BEFORE_S = 0.4
"""What a frame is compared with."""
_FULL_DB = 16.0
"""A rise by so much is stress 1."""
_LEAST = 0.35
"""Rises of less (5.6 dB) are no stress."""
_APART_S = 0.48
"""A syllable is not stressed if one before it within this time rose more: heads nod twice a second at most."""

MEMORY_S = _BEFORE_S + _APART_S
"""Sound before a frame that its stress depends on."""


class StressMeter:
    """Stress of the frames of one segment, whatever pieces its audio comes in. Not thread-safe.

    Args:
        fps: frames per second of the video.
    """

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self.reset()

    def reset(self) -> None:
        """Drops all state: the next push begins a new segment."""
        self._sound: Pcm = np.zeros(0, np.int16)
        self._frame = 0
        self._levels: deque[float] = deque(maxlen=max(1, round(_BEFORE_S * self._fps)))
        self._rises: deque[float] = deque(maxlen=max(1, round(_APART_S * self._fps)))
        self._known: deque[float] = deque()

    def push(self, samples: Pcm) -> None:
        """Takes int16 mono 16 kHz samples `[n]`, any n."""
        sound = np.concatenate([self._sound, samples])
        begin = frame_start(self._frame, self._fps)
        at = 0
        while (end := frame_start(self._frame + 1, self._fps) - begin) <= len(sound):
            self._known.append(self._stress(sound[at:end]))
            at = end
            self._frame += 1
        self._sound = sound[at:]

    def take(self) -> float:
        """The stress of the next frame, 0 … 1: above 0 where a stressed syllable begins; 0 where the frame's audio is not whole."""
        return self._known.popleft() if self._known else 0.0

    def _stress(self, frame: Pcm) -> float:
        sound = frame.astype(np.float32)
        power = float(np.dot(sound, sound)) / (len(sound) * 32768**2)
        level = max(_FLOOR_DB, 10 * math.log10(max(power, 1e-12)))
        before = sum(self._levels) / len(self._levels) if self._levels else _FLOOR_DB
        rise = min(max((level - before) / _FULL_DB, 0.0), 1.0)
        stressed = rise >= _LEAST and rise > max(self._rises, default=0.0)
        self._levels.append(level)
        self._rises.append(rise)
        return rise if stressed else 0.0
