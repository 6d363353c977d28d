"""Mel-frequency cepstral coefficients as SyncNet was trained on them: those of python_speech_features 0.6 with its defaults."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media import Pcm

_COEFFICIENTS = 13
_RATE = 16_000
_WINDOW, _STEP = 400, 160  # samples: 25 ms, every 10 ms
_FFT = 512
_FILTERS = 26
_PREEMPHASIS = 0.97
_LIFTER = 22
_LEAST = float(np.finfo(np.float64).eps)

Cepstra = NDArray[np.float64]


def mfcc(sound: Pcm) -> Cepstra:
    """float64 `[n, 13]`, 100 a second, of int16 `[samples]` (one or more) at 16 kHz; value 0 is the logarithm of the energy.

    Values are those of `python_speech_features.mfcc(sound, 16000)`: pre-emphasis, windows without a shape, the last one filled with
    zeros.
    """
    samples = sound.astype(np.float64)
    samples[1:] -= _PREEMPHASIS * sound[:-1]
    count = 1 + max(0, -(-(len(samples) - _WINDOW) // _STEP))
    filled = np.zeros((count - 1) * _STEP + _WINDOW)
    filled[: len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(filled, _WINDOW)[::_STEP]
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2 / _FFT
    bands = np.log(_above_zero(power @ _filters().T))
    cepstra: Cepstra = bands @ _cosines().T
    cepstra[:, 0] = np.log(_above_zero(power.sum(1)))
    return cepstra


def _above_zero(values: Cepstra) -> Cepstra:
    return np.where(values == 0, _LEAST, values)


def _filters() -> Cepstra:
    """Triangles evenly spaced in mels, between whole bins of the spectrum: `[26, 257]`."""
    mels = np.linspace(0, 2595 * np.log10(1 + _RATE / 2 / 700), _FILTERS + 2)
    corners = np.floor((_FFT + 1) * 700 * (10 ** (mels / 2595) - 1) / _RATE)
    low, top, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = np.arange(_FFT // 2 + 1)
    rising = np.where((bins >= low) & (bins < top), (bins - low) / (top - low), 0)
    falling = np.where((bins >= top) & (bins < high), (high - bins) / (high - top), 0)
    return np.asarray(rising + falling, np.float64)


def _cosines() -> Cepstra:
    """The first rows of the orthonormal DCT-II, each with its lifter: `[13, 26]`."""
    rows = np.arange(_COEFFICIENTS)[:, None]
    waves = np.sqrt(2 / _FILTERS) * np.cos(np.pi * rows * (2 * np.arange(_FILTERS) + 1) / (2 * _FILTERS))
    # Row 0 would be weighted by √½, but energy takes its place.
    return np.asarray(waves * (1 + _LIFTER / 2 * np.sin(np.pi * rows / _LIFTER)), np.float64)
