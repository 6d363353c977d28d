"""Log-mel frames for the mouth network, and a causal normaliser of loudness.

The network was trained on exactly these functions; changing a constant means training again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
HOP = 160  # samples: 100 frames per second
WINDOW = 400  # samples: 25 ms; frame j is samples [HOP·(j+1) − WINDOW, HOP·(j+1))
BANDS = 40
_FFT = 512
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7600.0

FLOOR_DB = -50.0
"""Level (dB of full scale, see `frame_levels`) below which nothing is amplified: room tone stays quiet."""
DECAY_DB = 0.03
"""Decay of the tracked level per frame: 3 dB/s, slow enough to last over pauses."""
_ATTACK = 0.3  # share of a new frame in the smoothed power: a click of one frame moves the level by a third of its own
_RANGE_DB = 70.0  # anything further below the tracked level is clamped
_SCALE_DB = 20.0  # decibels per unit of the network's input


def _mel_filters() -> NDArray[np.float32]:
    def to_mel(hz: float) -> float:
        return float(2595 * np.log10(1 + hz / 700))  # O'Shaughnessy's formula

    mels = np.linspace(to_mel(_LOWEST_HZ), to_mel(_HIGHEST_HZ), BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = np.arange(_FFT // 2 + 1) * RATE / _FFT
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.maximum(0, np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)))
    scale = 4.0 / (_FFT * WINDOW)  # a full-scale sine reads about 0 dB in its band
    return np.ascontiguousarray((weights * scale).T.astype(np.float32))


_FILTERS = _mel_filters()
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


def band_levels(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows float32[n, 400] in -1..1 → band levels float32[n, 40] in dB of full scale, not below -120."""
    spectrum = np.fft.rfft(frames * _HANN, _FFT, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    levels: NDArray[np.float32] = 10 * np.log10(np.maximum(power @ _FILTERS, np.float32(1e-12)))
    return levels


def frame_powers(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows float32[n, 400] → mean power float32[n] (1.0 is a full-scale square wave)."""
    powers: NDArray[np.float32] = np.einsum("ij,ij->i", frames, frames) / np.float32(frames.shape[1])
    return powers


class Normaliser:
    """Tracks the level of the speech with a fast attack and a slow decay, never below `FLOOR_DB`."""

    def __init__(self) -> None:
        self._power = 0.0
        self._level = FLOOR_DB

    def levels(self, powers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frame powers float32[n] → tracked level in dB after each, float32[n]."""
        out = np.empty(len(powers), np.float32)
        power, level = self._power, self._level
        for i, new in enumerate(powers.tolist()):
            power += _ATTACK * (new - power)
            now = 10 * np.log10(power) if power > 1e-12 else -120.0
            level = max(now, level - DECAY_DB, FLOOR_DB)
            out[i] = level
        self._power, self._level = power, level
        return out


def network_input(bands: NDArray[np.float32], levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Band levels [n, 40] and tracked levels [n], both dB → the network's input float32[n, 40]."""
    relative = np.maximum(bands - levels[:, None], np.float32(-_RANGE_DB))
    scaled: NDArray[np.float32] = (relative + np.float32(_RANGE_DB / 2)) / np.float32(_SCALE_DB)
    return scaled


def whole(sound: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Computes a whole recording: int16[n] → input float32[n // 160, 40] and frame powers float32[n // 160]."""
    padded = np.concatenate([np.zeros(WINDOW - HOP, np.float32), sound.astype(np.float32) / 32768])
    if len(padded) < WINDOW:
        return np.zeros((0, BANDS), np.float32), np.zeros(0, np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    powers = frame_powers(frames)
    return network_input(band_levels(frames), Normaliser().levels(powers)), powers
