"""Streaming conversion between sample rates with a delay of one millisecond.

soxr holds back 12–30 ms of a live stream inside its block structure, which would be the largest single part of
the path's latency; a windowed-sinc polyphase filter needs `HALF_WIDTH` samples of look-ahead and no more.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pcm

HALF_WIDTH = 16
"""Zero crossings of the sinc on each side (at the lower of the two rates)."""
_KAISER_BETA = 8.0  # stop band near -80 dB (Kaiser's formula: A = 8.7 + beta/0.1102)
_FEW_PHASES = 8  # up to so many each is a call of its own: 16 to 48 kHz has three, 44.1 to 48 kHz has 160
_ROLL_OFF = 0.92  # pass band edge as a share of the lower Nyquist frequency


@lru_cache(maxsize=16)
def _filters(up: int, down: int) -> tuple[NDArray[np.float32], int]:
    """Filter of each phase `[up, taps]`, and how many input samples lie before the centre one."""
    cutoff = _ROLL_OFF * min(1.0, up / down)
    reach = ceil(HALF_WIDTH / min(1.0, up / down))
    offsets = np.arange(-reach + 1, reach + 1)
    distance = offsets[None, :] - np.arange(up)[:, None] / up
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / reach) ** 2, 0, 1))) / np.i0(_KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * distance) * window
    taps /= taps.sum(axis=1, keepdims=True)
    return taps.astype(np.float32), reach - 1


class Resampler:
    """Converts int16 mono PCM from `source` to `target` Hz; any chunking gives the same samples.

    Output sample `n` lies at input time `n·source/target`: nothing is delayed, a sample is merely withheld until the
    `HALF_WIDTH` samples after it have come. `flush` gives the rest; in all `ceil(samples·target/source)` come out.
    """

    def __init__(self, source: int, target: int) -> None:
        divisor = gcd(source, target)
        self._up, self._down = target // divisor, source // divisor
        self._taps, self._before = _filters(self._up, self._down)
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the next push begins a new stream."""
        self._held = np.zeros(self._before, np.float32)
        self._first = -self._before  # input index of the first held sample
        self._received = 0
        self._made = 0

    def push(self, samples: Pcm) -> Pcm:
        """Takes int16 `[n]`; returns the int16 samples that are ready."""
        self._received += len(samples)
        if self._up == self._down:
            return samples
        self._held = np.concatenate([self._held, samples.astype(np.float32)])
        width = self._taps.shape[1]
        last = self._first + len(self._held) - width + self._before  # the last centre whose taps are all here
        return self._make(self._up * last // self._down + 1 if last >= 0 else 0)

    def flush(self) -> Pcm:
        """The stream is over: returns what is left, as if silence followed."""
        if self._up == self._down:
            return np.zeros(0, np.int16)
        self._held = np.concatenate([self._held, np.zeros(self._taps.shape[1], np.float32)])
        return self._make(-(-self._received * self._up // self._down))

    def _make(self, upto: int) -> Pcm:
        if upto <= self._made:
            return np.zeros(0, np.int16)
        if self._up <= _FEW_PHASES:
            made = self._by_phase(upto)
        else:
            windows = self._windows(0, len(self._held) - self._taps.shape[1] + 1)
            at = np.arange(self._made, upto, dtype=np.int64) * self._down
            centre, phase = at // self._up, at % self._up
            rows = windows[centre - self._before - self._first]
            made = np.einsum("ij,ij->i", rows, self._taps[phase])
        self._made = upto
        keep = upto * self._down // self._up - self._before - self._first
        if keep > 0:
            keep = min(keep, len(self._held))
            self._held = self._held[keep:]
            self._first += keep
        np.rint(made, out=made)
        np.minimum(made, np.float32(32767), out=made)
        np.maximum(made, np.float32(-32768), out=made)
        rounded: Pcm = made.astype(np.int16)
        return rounded

    def _windows(self, first: int, count: int, step: int = 1) -> NDArray[np.float32]:
        """`count` views of as many held samples as a filter has taps, `step` apart: `[count, taps]`.

        numpy's `sliding_window_view` takes as long as the filter itself takes for a block of live audio.
        """
        held = self._held
        return np.ndarray((count, self._taps.shape[1]), np.float32, held, 4 * first, (4 * step, 4))

    def _by_phase(self, upto: int) -> NDArray[np.float32]:
        """The samples before `upto`. Those of one phase lie `down` input samples apart, so that their windows need no copy."""
        made = np.empty(upto - self._made, np.float32)
        for k in range(min(self._up, len(made))):
            centre, phase = divmod((self._made + k) * self._down, self._up)
            out = made[k :: self._up]
            rows = self._windows(centre - self._before - self._first, len(out), self._down)
            np.einsum("ij,j->i", rows, self._taps[phase], out=out)
        return made
