"""From spans of sounds to what the network should say at each 20 ms step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.phonemes import LIP_TUCKS, LIPS_MEET, SILENCE

RATE = 16_000
STEP = 320
Array = NDArray[np.float32]
#: The lips meet before the sound tells, and part at the burst, in the later half of a stop's label (seconds).
MEET_EARLY_S = 0.03
_PB, _M = LIPS_MEET


def class_steps(spans: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Class at the moments 0, 20, 40 … ms: int64[count]."""
    times = np.arange(count) * STEP
    index = np.clip(np.searchsorted(spans[:, 1], times, side="right") - 1, 0, len(spans) - 1)
    return np.where(times < spans[index, 2], spans[index, 0], SILENCE).astype(np.int64)


def _marks(spans: NDArray[np.int32], count: int, kinds: tuple[int, ...], early_s: float) -> Array:
    """1 where a sound of `kinds` holds the lips, 0 elsewhere; stops count until 60 % of their label, others whole."""
    out = np.zeros(count, np.float32)
    for kind, start, end in spans:
        if kind in kinds:
            last = start + max(0.6 * (end - start), 0.04 * RATE) if kind == _PB else end - 0.01 * RATE
            first = start - early_s * RATE
            middle = round((first + last) / 2 / STEP)
            low, high = min(int(np.ceil(first / STEP)), middle), max(int(last // STEP), middle)
            out[max(0, low) : max(0, high) + 1] = 1
    return out


def closure_steps(spans: NDArray[np.int32], count: int) -> Array:
    """1 while the lips are pressed together for /p b m/: float32[count]."""
    return _marks(spans, count, LIPS_MEET, MEET_EARLY_S)


def tuck_steps(spans: NDArray[np.int32], count: int) -> Array:
    """1 while the lower lip is under the teeth for /f v/: float32[count]."""
    return _marks(spans, count, (LIP_TUCKS,), 0.02)
