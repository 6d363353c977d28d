"""The avatar's own voice in the user's microphone: learned from what was played, so that it is not taken for the user.

Works on the envelope of twenty bands, so codecs, jitter buffers and rooms do not matter. What is played comes back after a delay
and through a filter that stay nearly the same: the delay is where the envelopes of the last seconds are most alike, the filter is
the median difference of levels in each band. A person is whatever is much louder than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
LIKE = 0.55
"""Likeness from which the microphone hears the avatar, once that has spoken for a second. Measured with 40 synthetic rooms, piper
as the avatar, piper and espeak-ng as persons who begin 0.05 to 1.2 s after it: echo 0.78 and more, persons 0.46 at most."""
UNLIKE = 0.5
"""Likeness under which what is heard is not the avatar, from `_FIRST` loud hops on. Measured with the same after 0.4 s: echo 0.67
and more, persons 0.31 in the median; those above it are below it a little later, all of them after 0.75 s."""
UNLIKE_WHOLE = 0.4
"""The same for speech that is over. Measured with piper's and espeak-ng's words of 0.4 to 1.8 s after a change of microphones: echo
0.45 and more, persons 0.36 at most."""
_FIRST = 22
_LIKE_LEAST, _UNLIKE_LEAST = 45, 15
"""Hops that are compared at each lag, at least. Few of them are alike by chance, which only makes it later known who speaks."""
_LOUDER_DB = 6.0
_LOUDER_BANDS = 10
"""A person is this much louder than the echo in half of the bands. Measured: 92 % of a person's hops, 5 % of an echo's."""
_ACTIVE_DB = 25.0
_QUIET_DB = 8.0
_SETTLE = int(0.9 * RATE / HOP)
"""Hops of the avatar's speech after which an echo would have come."""
_LEARN = int(1.0 * RATE / HOP)
"""Hops of the avatar's speech without which a likeness says nothing."""
_SELDOM = 32
"""Hops between two looks once it is known whether there is an echo: a look takes 5 ms."""
_MISSING = 5
"""Looks in a row, 0.6 s, in which an echo should have been heard and was not: then there is none any more."""
_KEPT = _HISTORY + LAG_MOST + _EARLY + 16
KEPT_S = _KEPT * HOP / RATE
_TOGETHER = RATE // 2
"""Samples that are looked at together while the avatar is silent: one by one they cost several times as much."""
_FLOOR_DB = 30.0
"""Level of digital silence, in the units of `_levels`."""

_SPEECH_DB = _FLOOR_DB + 12.0
"""Mean level of the bands above which the avatar speaks."""

Levels = npt.NDArray[np.float64]
Sound = npt.NDArray[np.float64]


class Echo(Enum):
    """Whether the microphone hears the avatar."""

    UNKNOWN = "unknown"
    NONE = "none"
    HEARD = "heard"


class _LevelHistory:
    """The newest `size` hops of one sound's levels. Moves them only when its room is used up."""

    def __init__(self, size: int) -> None:
        self._rows: Levels = np.full((4 * size, BANDS), _FLOOR_DB)
        self._size = self._end = size

    def add(self, levels: Levels) -> None:
        """One hop more, (BANDS,), or several, (hops, BANDS): `_size` at most."""
        hops = len(levels) if levels.ndim == 2 else 1
        if self._end + hops > len(self._rows):
            self._rows[: self._size] = self._rows[self._end - self._size : self._end].copy()
            self._end = self._size
        self._rows[self._end : self._end + hops] = levels
        self._end += hops

    @property
    def kept(self) -> Levels:
        """(size, BANDS), newest last; valid until the next `add`."""
        return self._rows[self._end - self._size : self._end]


class EchoPath:
    """Follows one microphone. `push` takes what it hears and what was played, both at 16 kHz and of the same time.

    Args:
        before: what was played up to now, `KEPT_S` or less of it.
    """

    def __init__(self, before: Sound | None = None) -> None:
        self.state = Echo.UNKNOWN
        self._rest = np.zeros((2, 0))
        self._waiting: list[Sound] = []  # what is not looked at yet, (2, samples) each
        self._hops = 0
        self._heard, self._played, self._smeared = _LevelHistory(_KEPT), _LevelHistory(_KEPT), _LevelHistory(_KEPT)
        if before is not None and np.any(before):
            for levels in _levels(_windows(before)):
                self._play(levels)
        self._spoke_at = -_KEPT  # the last hop in which the avatar spoke
        self._active = self._missing = 0
        self._unlike = False
        self._lag = 0
        self._gain: Levels = np.full(BANDS, -60.0)
        self._floor: Levels = np.full(BANDS, _FLOOR_DB)

    def push(self, heard: Sound, played: Sound) -> None:
        """Any number of samples, as many of each; values of int16."""
        self._waiting.append(np.stack([heard, played]))
        if self.sounding or np.any(played) or sum(each.shape[1] for each in self._waiting) >= _TOGETHER:
            self._look()

    def _look(self) -> None:
        both = np.concatenate([self._rest, *self._waiting], axis=1)
        self._waiting.clear()
        hops = (both.shape[1] - _WINDOW) // HOP + 1
        if hops > 0:
            windows = _windows(both)[:, :hops]
            silent = not np.any(both[1])  # costs no spectrum
            played_levels = np.full((hops, BANDS), _FLOOR_DB) if silent else _levels(windows[1])
            heard_levels = _levels(windows[0])
            if silent and not self.sounding:
                self._pause(heard_levels, played_levels)
            else:
                for levels in zip(heard_levels, played_levels, strict=True):
                    self._hop(*levels)
        self._rest = both[:, max(hops, 0) * HOP :]

    @property
    def sounding(self) -> bool:
        """The avatar is heard, or its echo may still come."""
        return self._hops - self._spoke_at < LAG_MOST + 12

    def louder(self, hops: int) -> float | None:
        """Share of the last hops in which the microphone hears more than the avatar: 0 … 1. All of them where there is no echo, and
        where what is heard is not like the avatar; None while that is not known.
        """
        if self.state is Echo.UNKNOWN and self.sounding and not self._unlike:
            return None
        if self.state is not Echo.HEARD:
            return 1.0
        self._look()
        expected = np.maximum(self._expected(hops), self._floor)
        bands = np.sum(self._heard.kept[-hops:] > expected + _LOUDER_DB, axis=1)
        return float(np.mean(bands >= _LOUDER_BANDS))

    @property
    def unlike(self) -> bool:
        """For speech that is over: it was not the avatar. What is no quarter of a second of speech may have been."""
        self._look()
        span = min(_HISTORY, self._hops)
        loud = np.mean(self._heard.kept[-_HISTORY:] - self._floor, axis=1) > _QUIET_DB
        return (
            int(np.sum(loud[-span:])) >= _UNLIKE_LEAST and self._likeness(loud, _UNLIKE_LEAST, span)[0] < UNLIKE_WHOLE
        )

    def _expected(self, hops: int) -> Levels:
        """The loudest that the echo may be now, in each band."""
        smeared = self._smeared.kept
        size = len(smeared)
        lags = range(max(self._lag - _EARLY, 0), self._lag + _EARLY + 1)
        loudest: Levels = np.max([smeared[size - lag - hops : size - lag] for lag in lags], axis=0)
        return loudest + self._gain

    def _hop(self, heard: Levels, played: Levels) -> None:
        self._play(played)
        self._heard.add(heard)
        self._hops += 1
        if np.mean(played) > _SPEECH_DB:
            self._active += 1
            self._spoke_at = self._hops
        if self._hops % 8 == 0:
            self._learn()

    def _pause(self, heard: Levels, played: Levels) -> None:
        """Hops in which the avatar is silent and its echo is over, all at once."""
        decay = _DECAY_DB * np.arange(1, len(heard) + 1)[:, np.newaxis]
        self._smeared.add(np.maximum(played, self._smeared.kept[-1] - decay))
        self._played.add(played)
        self._heard.add(heard)
        self._hops += len(heard)
        self._learn()

    def _play(self, played: Levels) -> None:
        self._smeared.add(np.maximum(played, self._smeared.kept[-1] - _DECAY_DB))
        self._played.add(played)

    def _learn(self) -> None:
        """Eight times a second, twice in a pause; costs next to nothing while the avatar is silent, and while the microphone is and
        that is known."""
        heard = self._heard.kept[-min(self._hops, _HISTORY) :]
        self._floor = np.partition(heard, len(heard) // 10, axis=0)[len(heard) // 10] + 3.0
        self._unlike = False
        if not self.sounding:
            return
        over = np.mean(self._heard.kept[-_HISTORY:] - self._floor, axis=1)
        quiet = float(np.max(over[-12:])) < _QUIET_DB
        if self.state is Echo.UNKNOWN and self._active >= _SETTLE and self._hops > LAG_MOST and quiet:
            self.state = Echo.NONE
        self._look_for_it(quiet)
        loud = over > _QUIET_DB
        span = min(_HISTORY, self._hops - LAG_MOST)
        if span < _LEARN or (self._active < _LEARN and np.sum(loud[-LAG_MOST:]) < _FIRST):
            return
        if self.state is Echo.UNKNOWN:
            self._unlike = 0 < self._likeness(loud, _UNLIKE_LEAST, span)[0] < UNLIKE
        elif self._hops % _SELDOM or not np.any(loud):
            return
        if self._active < _LEARN:
            return
        likeness, lag = self._likeness(loud, _LIKE_LEAST, span)
        if likeness >= LIKE:
            self.state, self._lag = Echo.HEARD, lag
            self._fit()
        elif self.state is Echo.UNKNOWN and self._active >= 2 * _LEARN:
            self.state = Echo.NONE

    def _look_for_it(self, quiet: bool) -> None:
        """An echo that was heard and is heard no more: other headphones, or a browser that has learned to take it out."""
        if self.state is not Echo.HEARD:
            return
        expected = float(np.mean(self._expected(12) - self._floor))
        self._missing = self._missing + 1 if quiet and expected > 2 * _QUIET_DB else 0
        if self._missing >= _MISSING:
            self.state, self._active, self._missing = Echo.UNKNOWN, 0, 0

    def _likeness(self, loud: npt.NDArray[np.bool_], least: int, span: int) -> tuple[float, int]:
        """How much the last `span` hops that were heard are like what was played, at the lag where they are most; 0 where less than
        `least` is known.

        Compares only the hops in which either has something: two that begin to speak after a silence, one a little after the
        other, would be alike in that alone.
        """
        heard, loud, all_played = self._heard.kept[-span:], loud[-span:], self._played.kept
        size, best, found = len(all_played), 0.0, 0
        speech = np.mean(all_played, axis=1) > _SPEECH_DB
        for lag in range(LAG_MOST):
            kept = loud | speech[size - lag - span : size - lag]
            if np.count_nonzero(kept) < least:
                continue
            ours, theirs = heard[kept], all_played[size - lag - span : size - lag][kept]
            ours, theirs = ours - np.mean(ours, axis=0), theirs - np.mean(theirs, axis=0)
            scale = float(np.sum(ours**2) * np.sum(theirs**2))
            likeness = float(np.sum(ours * theirs)) / scale**0.5 if scale > 0 else 0.0
            if likeness > best:
                best, found = likeness, lag
        return best, found

    def _fit(self) -> None:
        smeared = self._smeared.kept
        at = len(smeared) - self._lag
        span = min(_HISTORY, at, self._hops)
        played, heard = smeared[at - span : at], self._heard.kept[-span:]
        for band in range(BANDS):
            active = played[:, band] > _FLOOR_DB + _ACTIVE_DB
            if np.sum(active) >= _LEARN // 4:
                self._gain[band] = np.median(heard[active, band] - played[active, band])


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


def _windows(sounds: Sound) -> Sound:
    """All whole windows along the last axis, one a hop."""
    return np.lib.stride_tricks.sliding_window_view(sounds, _WINDOW, axis=-1)[..., ::HOP, :]


_TAPER = np.hanning(_WINDOW)
_BANDS = _bands()


def _levels(sounds: Sound) -> Levels:
    """Levels in dB of each row, (rows, BANDS); at least `_FLOOR_DB`."""
    power = np.abs(np.fft.rfft(sounds * _TAPER, axis=1)) ** 2
    return np.asarray(10 * np.log10(power @ _BANDS + 10 ** (_FLOOR_DB / 10)))


PLAYED_S = 4.0

Played = tuple[float, npt.NDArray[np.int16], int]
"""When its first sample was heard, samples, Hz."""


class PlayedSound:
    """What the avatar has said in the last seconds, by the clock, at 16 kHz; silence where nothing was played.

    Args:
        news: what was played since it was last called.
    """

    def __init__(self, news: Callable[[], Iterator[Played]]) -> None:
        self._news = news
        self._ring = np.zeros(round(PLAYED_S * RATE))
        self._end = 0  # number of the first sample after what is kept; sample n is heard at n / RATE

    def between(self, begin_s: float, samples: int) -> npt.NDArray[np.float64]:
        """So many samples from this time on."""
        for at_s, sound, rate in self._news():
            self._write(round(at_s * RATE), _resampled(sound, rate))
        if round(begin_s * RATE) >= self._end:
            return np.zeros(samples)
        numbers = round(begin_s * RATE) + np.arange(samples)
        kept = (numbers < self._end) & (numbers >= self._end - len(self._ring))
        return np.where(kept, self._ring[numbers % len(self._ring)], 0.0)

    def _write(self, begin: int, sound: npt.NDArray[np.float64]) -> None:
        sound = sound[-len(self._ring) :]
        end = begin + len(sound)
        gap = min(max(begin - self._end, 0), len(self._ring))
        self._ring[(begin - 1 - np.arange(gap)) % len(self._ring)] = 0.0
        self._ring[(end - 1 - np.arange(len(sound))) % len(self._ring)] = sound[::-1]
        self._end = max(self._end, end)


def _resampled(sound: npt.NDArray[np.int16], rate: int) -> npt.NDArray[np.float64]:
    """By interpolation: envelopes need no better."""
    if rate == RATE or not len(sound):
        return sound.astype(np.float64)
    count = len(sound) * RATE // rate
    return np.interp(np.arange(count) * rate / RATE, np.arange(len(sound)), sound.astype(np.float64))
