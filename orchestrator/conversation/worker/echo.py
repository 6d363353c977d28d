"""The avatar's own voice in the user's microphone: learned from what was played, so that it is not taken for the user.

Works on the envelope of twenty bands, so codecs, jitter buffers and rooms do not matter. What is played comes back after a delay
and through a filter that stay nearly the same: the delay is where the envelopes of the last seconds are most alike, the filter is
the median difference of levels in each band. A person is whatever is much louder than that.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

RATE = 16_000
HOP = 256
"""Samples: 16 ms."""
_WINDOW = 2 * HOP
BANDS = 20
_HISTORY = 3 * RATE // HOP
"""Hops that are compared: three seconds."""
LAG_MOST = int(1.0 * RATE / HOP)
"""Hops: the longest way from the avatar through the loudspeaker to here. Networks take 0.1 to 0.4 s of it,
rooms 0.2 s, busy machines the rest."""
_EARLY = 5
"""Hops by which an echo may come before its usual time, or after it: jitter buffers shrink and grow."""
_DECAY_DB = 1.5
"""A room of 0.6 s reverberation loses so much in a hop."""
LIKE = 0.5
"""Likeness of three seconds above which the microphone hears the avatar. Measured with synthetic rooms: echo 0.69 to 0.86, a person
who speaks at the same time without echo at most 0.33."""
_LOUDER_DB = 6.0
_LOUDER_BANDS = 10
"""A person is this much louder than the echo in half of the bands. Measured: 92 % of a person's hops, 5 % of an echo's."""
_ACTIVE_DB = 25.0
_QUIET_DB = 8.0
_SETTLE = int(0.9 * RATE / HOP)
"""Hops of the avatar's speech after which an echo would have come."""
_LEARN = int(1.0 * RATE / HOP)
"""Hops of the avatar's speech without which a likeness says nothing."""
_FLOOR_DB = 30.0
"""Level of digital silence, in the units of `_levels`."""

Levels = npt.NDArray[np.float64]
Sound = npt.NDArray[np.float64]


class Echo(Enum):
    """Whether the microphone hears the avatar."""

    UNKNOWN = "unknown"
    NONE = "none"
    HEARD = "heard"


class EchoPath:
    """Follows one microphone. `push` takes what it hears and what was played, both at 16 kHz and of the same time."""

    def __init__(self) -> None:
        self.state = Echo.UNKNOWN
        self._rest = np.zeros((2, 0))
        self._hops = 0
        size = _HISTORY + LAG_MOST + _EARLY + 16
        self._heard: Levels = np.full((size, BANDS), _FLOOR_DB)  # newest last
        self._played: Levels = np.full((size, BANDS), _FLOOR_DB)
        self._smeared: Levels = np.full((size, BANDS), _FLOOR_DB)
        self._active = 0
        self._lag = 0
        self._gain: Levels = np.full(BANDS, -60.0)
        self._floor: Levels = np.full(BANDS, _FLOOR_DB)

    def push(self, heard: Sound, played: Sound) -> None:
        """Any number of samples, as many of each; values of int16."""
        both = np.concatenate([self._rest, np.stack([heard, played])], axis=1)
        while both.shape[1] >= _WINDOW:
            self._hop(_levels(both[:, :_WINDOW]))
            both = both[:, HOP:]
        self._rest = both

    @property
    def sounding(self) -> bool:
        """The avatar is heard, or its echo may still come."""
        return bool(np.any(_is_speech(self._played[-LAG_MOST - 12 :])))

    def louder(self, hops: int) -> float:
        """Share of the last hops in which the microphone hears more than the avatar: 0 … 1. All of them where there is no echo."""
        if self.state is not Echo.HEARD:
            return 1.0
        expected = np.maximum(self._expected(hops), self._floor)
        bands = np.sum(self._heard[-hops:] > expected + _LOUDER_DB, axis=1)
        return float(np.mean(bands >= _LOUDER_BANDS))

    def _expected(self, hops: int) -> Levels:
        """The loudest that the echo may be now, in each band."""
        size = len(self._smeared)
        lags = range(max(self._lag - _EARLY, 0), self._lag + _EARLY + 1)
        loudest: Levels = np.max([self._smeared[size - lag - hops : size - lag] for lag in lags], axis=0)
        return loudest + self._gain

    def _hop(self, levels: Levels) -> None:
        for ring, level in ((self._heard, levels[0]), (self._played, levels[1])):
            ring[:-1] = ring[1:]
            ring[-1] = level
        self._smeared[:-1] = self._smeared[1:]
        self._smeared[-1] = np.maximum(levels[1], self._smeared[-2] - _DECAY_DB)
        self._active += bool(_is_speech(levels[1][np.newaxis])[0])
        self._hops += 1
        if self._hops % 8 == 0:
            self._learn()

    def _learn(self) -> None:
        """Eight times a second; costs nothing while the avatar is silent."""
        self._floor = np.percentile(self._heard[-min(self._hops, _HISTORY) :], 10, axis=0) + 3.0
        if not self.sounding:
            return
        if self.state is Echo.UNKNOWN and self._active >= _SETTLE and self._hops > LAG_MOST:
            over = np.mean(self._heard[-12:] - self._floor, axis=1)
            if float(np.max(over)) < _QUIET_DB:
                self.state = Echo.NONE
        if self._active < _LEARN:
            return
        likeness, lag = self._likeness()
        if likeness >= LIKE:
            self.state, self._lag = Echo.HEARD, lag
            self._fit()
        elif self.state is Echo.UNKNOWN and self._active >= 2 * _LEARN:
            self.state = Echo.NONE

    def _likeness(self) -> tuple[float, int]:
        span = min(_HISTORY, self._hops - LAG_MOST)
        if span < _LEARN:
            return 0.0, 0
        heard = self._heard[-span:] - np.mean(self._heard[-span:], axis=0)
        size, best, found = len(self._played), 0.0, 0
        for lag in range(LAG_MOST):
            played = self._played[size - lag - span : size - lag]
            played = played - np.mean(played, axis=0)
            scale = float(np.sum(heard**2) * np.sum(played**2))
            likeness = float(np.sum(heard * played)) / scale**0.5 if scale > 0 else 0.0
            if likeness > best:
                best, found = likeness, lag
        return best, found

    def _fit(self) -> None:
        at = len(self._smeared) - self._lag
        span = min(_HISTORY, at, self._hops)
        played, heard = self._smeared[at - span : at], self._heard[-span:]
        for band in range(BANDS):
            active = played[:, band] > _FLOOR_DB + _ACTIVE_DB
            if np.sum(active) >= _LEARN // 4:
                self._gain[band] = np.median(heard[active, band] - played[active, band])


def _is_speech(levels: Levels) -> npt.NDArray[np.bool_]:
    return np.asarray(np.mean(levels, axis=1) > _FLOOR_DB + 12.0)


def _bands() -> Levels:
    """Triangles, evenly spaced in mel from 120 Hz to 6 kHz: (bins, BANDS)."""
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    mel = 2595 * np.log10(1 + frequencies / 700)
    low, high = 2595 * np.log10(1 + np.array([120.0, 6000.0]) / 700)
    edges = np.interp(np.linspace(low, high, BANDS + 2), mel, np.arange(len(mel)))
    bins = np.arange(len(mel))[:, np.newaxis]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0.0, None)


_TAPER = np.hanning(_WINDOW)
_BANDS = _bands()


def _levels(sounds: Sound) -> Levels:
    """Levels in dB of each row, (rows, BANDS); at least `_FLOOR_DB`."""
    power = np.abs(np.fft.rfft(sounds * _TAPER, axis=1)) ** 2
    return np.asarray(10 * np.log10(power @ _BANDS + 10 ** (_FLOOR_DB / 10)))
