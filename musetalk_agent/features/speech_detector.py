"""Tells speech from silence and noise, 20 ms at a time: the network that moves the `warp` engine's mouth, and a rise of the level.

The network knows whispers and quiet speakers from noise at the same level, which a level does not. It speaks of a moment 100 ms
ago and is often sure after 60 ms; a rise of the level over the background is known after 40 ms, so that with a little support of
the network it tells the beginning of a word earlier. Figures, and other detectors beside it: docs/topics/silence.md.
"""

from __future__ import annotations

import functools
from collections import deque

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.mouth_network import PAST as _PAST
from musetalk_agent.features.mouth_network import STEP, Ear, Heard, MouthNetwork, default_weights
from musetalk_agent.media import Pcm

LEVEL_DBFS = -55.0
"""RMS of 20 ms under which sound is silence for `LevelDetector`."""
_FLOOR_DBFS = (
    -68.0
)  # RMS of 20 ms under which nothing is speech: a speaker whose loudest peak is -42 dBFS stays above it
_SPEECH = 0.2  # the network's number from which it is speech
_SUPPORT = 0.05  # and from which a rise of the level is: key strokes get less
_ABOVE_DB = 8.0  # and only so far above the background: to the network some rumble of machines is speech for certain
_RISE_DB = 9.0
_RISE_DBFS = -62.0  # a rise that stays below this is none
_RISE_STEPS = 2  # a key stroke is over after one
_RISEN_STEPS = 8  # a level that stays up for longer is no beginning
_BACKGROUND_STEPS = 100  # the background is the quietest tenth of the last 2 s: speech falls that far between its words
_BACKGROUND_PART = 10
_STEADY_DB = 0.45  # standard deviation of the level over 200 ms; hum and white noise are below it (see `visemes`)
_SLEEP_STEPS = 20  # after so many steps near the background the network is not asked
_WARM_STEPS = 15  # sound that it hears first when it is asked again


class SpeechDetector:
    """One verdict for each 20 ms of a segment, the same however the sound is cut. About 0.15 ms of one core each, and 0.01 in
    silence, hum and steady noise, where the network is not asked.

    Args:
        network: shared and immutable.
        ear: a new one that the segment's feature stream shares (see `Ear`), until the detector first sleeps; None for its own.
    """

    def __init__(self, network: MouthNetwork, ear: Ear | None = None) -> None:
        self._network = network
        self._sound = np.zeros(_PAST, np.float32)  # the last samples in -1 … 1, `_PAST` of them already used
        self._recent: deque[float] = deque(maxlen=_BACKGROUND_STEPS)  # levels
        self._windows: deque[NDArray[np.float32]] = deque(maxlen=_WARM_STEPS)  # since the network was asked last
        self._risen = self._quiet = self._near = 0
        self._ear, self._heard = ear or Ear(network), 0

    @classmethod
    def shipped(cls) -> SpeechDetector:
        """With the network that is shipped, read once per process. Raises `WeightsMissing`."""
        return cls(shipped_network())

    def push(self, samples: Pcm) -> list[bool]:
        """Takes int16[n] at 16 kHz; returns for each 20 ms that are now complete whether speech is heard."""
        self._sound = np.concatenate([self._sound, samples.astype(np.float32) / np.float32(32768)])
        verdicts, at = [], 0
        while at + _PAST + STEP <= len(self._sound):
            verdicts.append(self._step(self._sound[at : at + _PAST + STEP]))
            at += STEP
        self._sound = self._sound[at:].copy()
        return verdicts

    @property
    def silent(self) -> bool:
        """The last 20 ms were so quiet that nobody can have spoken."""
        return self._quiet > 0

    def _step(self, window: NDArray[np.float32]) -> bool:
        new = window[_PAST:]
        level = 10 * float(np.log10(float(np.dot(new, new)) / STEP + 1e-12))
        self._recent.append(level)
        background = sorted(self._recent)[len(self._recent) // _BACKGROUND_PART]
        above = level > background + _ABOVE_DB
        self._risen = self._risen + 1 if level > max(background + _RISE_DB, _RISE_DBFS) else 0
        self._quiet = self._quiet + 1 if level < _FLOOR_DBFS else 0
        self._near = 0 if above and not self._quiet else self._near + 1
        if self._near > _SLEEP_STEPS:
            self._windows.append(window.copy())
            return False
        if self._windows:  # something rises again
            self._ear, self._heard = Ear(self._network), 0
            for past in self._windows:
                self._hear(past)
            self._windows.clear()
        heard = self._hear(window)
        if self._quiet:
            return False
        moving, speech = heard.moves_db > _STEADY_DB, heard.step.speech
        rises = _RISE_STEPS <= self._risen <= _RISEN_STEPS and speech > _SUPPORT
        return (moving and above and speech > _SPEECH) or rises

    def _hear(self, window: NDArray[np.float32]) -> Heard:
        self._heard += 1
        return self._ear.hear(self._heard - 1, window)


class LevelDetector:
    """Every 20 ms whose RMS reaches a level (dBFS) are sound that is shown."""

    def __init__(self, dbfs: float = LEVEL_DBFS) -> None:
        self._power = (32768 * 10 ** (dbfs / 20)) ** 2
        self._sound: Pcm = np.zeros(0, np.int16)

    def push(self, samples: Pcm) -> list[bool]:
        """Takes int16[n] at 16 kHz; returns a verdict for each 20 ms that are now complete."""
        sound = np.concatenate([self._sound, samples])
        whole = len(sound) // STEP
        self._sound = sound[whole * STEP :]
        powers = np.mean(sound[: whole * STEP].reshape(whole, STEP).astype(np.float64) ** 2, axis=1)
        verdicts: list[bool] = (powers >= self._power).tolist()
        return verdicts


@functools.cache
def shipped_network() -> MouthNetwork:
    """The network that is shipped, read once per process. Raises `WeightsMissing`."""
    return MouthNetwork.load(default_weights())
