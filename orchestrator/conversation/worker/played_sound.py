"""What the avatar has just said, by the clock: the sound that may come back through the user's microphone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from orchestrator.conversation.worker.echo import RATE

KEPT_S = 4.0

Played = tuple[float, npt.NDArray[np.int16], int]
"""When its first sample was heard, samples, Hz."""


class PlayedSound:
    """The last seconds at 16 kHz; silence where nothing was played.

    Args:
        news: what was played since it was last called.
    """

    def __init__(self, news: Callable[[], Iterator[Played]]) -> None:
        self._news = news
        self._ring = np.zeros(round(KEPT_S * RATE))
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
