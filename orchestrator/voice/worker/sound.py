"""A segment's PCM at the sender's rate, and any part of it at 48 kHz.

Conversion is a Kaiser-windowed sinc in polyphase form, as the agent's is (docs/decisions/0002-own-resampler.md), but without a
state: sample `n` at 48 kHz lies at input time `n·rate/48000` whatever was asked for before, so that a voice may begin anywhere
and agrees with the agent's to the sample.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]
ROOM_RATE = 48000
_HALF_WIDTH = 16  # zero crossings on each side: 77-82 dB signal to error
_KAISER_BETA = 8.0
_ROLL_OFF = 0.92


@lru_cache(maxsize=16)
def _filters(up: int, down: int) -> tuple[NDArray[np.float32], int]:
    """Filter of each phase `[up, taps]`, and how many input samples lie before the centre one."""
    cutoff = _ROLL_OFF * min(1.0, up / down)
    reach = ceil(_HALF_WIDTH / min(1.0, up / down))
    distance = np.arange(-reach + 1, reach + 1)[None, :] - np.arange(up)[:, None] / up
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / reach) ** 2, 0, 1))) / np.i0(_KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * distance) * window
    taps /= taps.sum(axis=1, keepdims=True)
    return taps.astype(np.float32), reach - 1


class SegmentSound:
    """PCM of one segment from input sample `start` on. Positions are samples at 48 kHz from the segment's own beginning."""

    def __init__(self, number: int, rate: int, start: int) -> None:
        self.number = number
        self.rate = rate
        self.ended = False
        divisor = gcd(rate, ROOM_RATE)
        self._up, self._down = ROOM_RATE // divisor, rate // divisor
        self._pcm = bytearray()
        self._first = start  # input index of the first sample kept

    @property
    def begin(self) -> int:
        """Position of the first sample kept."""
        return -(-self._first * self._up // self._down)

    @property
    def _past(self) -> int:
        return self._first + len(self._pcm) // 2

    @property
    def ready(self) -> int:
        """Position up to which samples can be made; the segment's end once it has ended."""
        if self.ended or self._up == self._down:
            return -(-self._past * self._up // self._down)
        taps, before = _filters(self._up, self._down)
        last = self._past - (int(taps.shape[1]) - before)  # the last centre whose taps are all here
        return max(self.begin, self._up * last // self._down + 1)

    def append(self, start: int, pcm: bytes) -> None:
        """More PCM. What is here already is skipped; a gap is a fault of the core and raises ValueError."""
        skip = self._past - start
        if skip < 0:
            raise ValueError(f"segment {self.number}: samples {self._past} to {start} are missing")
        self._pcm += pcm[2 * skip :]

    def forget(self, position: int) -> None:
        """Nothing before `position` is asked for again."""
        _, before = _filters(self._up, self._down)
        drop = min(position * self._down // self._up - before - self._first, len(self._pcm) // 2)
        if drop > 0:
            del self._pcm[: 2 * drop]
            self._first += drop

    def take(self, position: int, count: int) -> NDArray[np.float32]:
        """`count` samples from `position` on; what is not here is silence."""
        if count <= 0:
            return np.zeros(0, np.float32)
        if self._up == self._down:
            return self._input(position, position + count)
        taps, before = _filters(self._up, self._down)
        at = np.arange(position, position + count, dtype=np.int64) * self._down
        centre, phase = at // self._up, at % self._up
        low = int(centre[0]) - before
        held = self._input(low, int(centre[-1]) - before + taps.shape[1])
        rows = np.lib.stride_tricks.sliding_window_view(held, taps.shape[1])[centre - before - low]
        made: NDArray[np.float32] = np.einsum("ij,ij->i", rows, taps[phase])
        return made

    def _input(self, low: int, high: int) -> NDArray[np.float32]:
        out = np.zeros(high - low, np.float32)
        first, past = max(low, self._first), min(high, self._past)
        if past > first:
            here = bytes(memoryview(self._pcm)[2 * (first - self._first) : 2 * (past - self._first)])
            out[first - low : past - low] = np.frombuffer(here, np.int16)
        return out
