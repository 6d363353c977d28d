"""Tells speech from silence and noise, 20 ms at a time: the network that moves the `warp` engine's mouth, and a rise of the level.

The network knows whispers and quiet speakers from noise at the same level, which a level does not. It speaks of a moment 100 ms
ago and is often sure after 60 ms; a rise of the level over the background is known after 40 ms, so that with a little support of
the network it tells the beginning of a word earlier. Figures, and other detectors beside it: docs/topics/silence.md.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features import melspec
from musetalk_agent.features.mouth_network import STEP, MouthNetwork, default_weights
from musetalk_agent.media import Pcm

LEVEL_DBFS = -55.0
"""RMS of 20 ms under which sound is silence for `LevelDetector`."""
_FLOOR_DBFS = (
    -68.0
)  # RMS of 20 ms under which nothing is speech: a speaker whose loudest peak is -42 dBFS stays above it
_SPEECH = 0.2  # the network's number from which it is speech
_SUPPORT = 0.05  # and from which a rise of the level is: key strokes get less
_ABOVE_DB = 6.0  # and only so far above the background: to the network some rumble of machines is speech for certain
_RISE_DB = 9.0
_RISE_DBFS = -62.0  # a rise that stays below this is none
_RISE_STEPS = 2  # a key stroke is over after one
_BACKGROUND_DB = 0.06  # by which the remembered background may rise per step: 3 dB/s
_STEADY_STEPS = 10  # 200 ms
_STEADY_DB = 0.3  # standard deviation of the level; machines hum below it (see `visemes`)
_SLEEP_STEPS = 20  # the network is not asked in digital silence, and begins anew after it
_PAST = melspec.WINDOW - melspec.HOP


class SpeechDetector:
    """One verdict for each 20 ms of a segment, the same however the sound is cut. About 0.15 ms of one core each, in silence 0.01.

    Args:
        network: shared and immutable.
    """

    def __init__(self, network: MouthNetwork) -> None:
        self._network = network
        self._sound = np.zeros(_PAST, np.float32)  # the last samples in -1 … 1, `_PAST` of them already used
        self._background = 0.0
        self._risen = 0
        self._begin()

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

    def _begin(self) -> None:
        self._run = self._network.run()
        self._normaliser = melspec.Normaliser()
        self._levels = np.full(_STEADY_STEPS, -120.0)
        self._quiet = 0

    def _step(self, window: NDArray[np.float32]) -> bool:
        new = window[_PAST:]
        level = 10 * float(np.log10(float(np.dot(new, new)) / STEP + 1e-12))
        self._background = min(level, self._background + _BACKGROUND_DB)
        self._risen = self._risen + 1 if level > max(self._background + _RISE_DB, _RISE_DBFS) else 0
        self._quiet = self._quiet + 1 if level < _FLOOR_DBFS else 0
        if self._quiet > _SLEEP_STEPS:
            if self._quiet == _SLEEP_STEPS + 1:
                quiet = self._quiet
                self._begin()
                self._quiet = quiet
            return False
        speech = self._hear(window)
        if level < _FLOOR_DBFS:
            return False
        moving = float(self._levels.std()) > _STEADY_DB
        above = level > self._background + _ABOVE_DB
        return (moving and above and speech > _SPEECH) or (self._risen >= _RISE_STEPS and speech > _SUPPORT)

    def _hear(self, window: NDArray[np.float32]) -> float:
        windows = np.stack([window[: melspec.WINDOW], window[melspec.HOP :]])
        powers = melspec.frame_powers(windows)
        mels = melspec.network_input(melspec.band_levels(windows), self._normaliser.levels(powers))
        self._levels = np.append(self._levels[1:], 10 * np.log10(float(powers.mean()) + 1e-12))
        return self._run.step(mels).speech


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
