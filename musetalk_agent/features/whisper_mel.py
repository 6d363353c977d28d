"""Whisper's log-mel columns (numerics §2.3), before the clamp that needs the loudest of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media import FEATURE_RATE

HOP = 160
"""Samples between columns: column j is centred on sample 160·j."""
WINDOW = 400
REACH = WINDOW // 2
"""Column j reads samples [160·j − 200, 160·j + 200)."""
BANDS = 80
SILENCE = -10.0
"""What a column of zeros reads: log10 of the floor 1e-10."""
RANGE = 8.0
"""What lies further than this (in log10 of power, so 80 dB) below the loudest is cut off."""


def _filters() -> NDArray[np.float64]:
    """Slaney's mel bank, 0 … 8000 Hz, area normalised: float64[201, 80]."""
    linear, step = 200 / 3, np.log(6.4) / 27  # Hz per mel below 1 kHz; log steps above

    def to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel < 15, mel * linear, 1000 * np.exp((mel - 15) * step))

    highest = 15 + np.log(FEATURE_RATE / 2 / 1000) / step
    edges = to_hz(np.linspace(0, highest, BANDS + 2))
    bins = np.linspace(0, FEATURE_RATE / 2, WINDOW // 2 + 1)[:, None]
    low, mid, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)))
    return np.ascontiguousarray(triangles * 2 / (high - low))


_FILTERS = _filters()
_HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def columns(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sound of each column, float32[n, 400] in -1 … 1 → log10 of power, float32[n, 80], not below `SILENCE`.

    The last bit may depend on n (matrix products do); call it with one n where that matters.
    """
    spectrum = np.fft.rfft(windows * _HANN, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2) @ _FILTERS
    return np.log10(np.maximum(power, 1e-10)).astype(np.float32)


def scaled(logs: NDArray[np.float32], loudest: np.float32) -> NDArray[np.float32]:
    """The encoder's input: clamped to `RANGE` below `loudest`, then (x + 4) / 4."""
    return (np.maximum(logs, loudest - np.float32(RANGE)) + np.float32(4)) / np.float32(4)
