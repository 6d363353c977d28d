"""One run of the mouth network over sound, step by step; the detector and the feature stream of a segment share one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features import melspec
from musetalk_agent.features.mouth_network import Array, MouthNetwork, Step

PAST = melspec.WINDOW - melspec.HOP
"""Samples before a step's first one that its first mel window reads."""
_LEVELS = 10  # 200 ms


@dataclass(frozen=True, slots=True)
class Heard:
    """What one step of sound is.

    Attributes:
        powers: mean power of its two mel windows, float32[2].
        step: what the network says.
        state: what the network passes on to `LipsRun`, float32[256].
        moves_db: standard deviation of the level in dB over the last 200 ms; before a run's first step the level is -120 dB.
    """

    powers: Array
    step: Step
    state: Array
    moves_db: float


class Ear:
    """Runs the network over windows of sound, from silence. Not thread-safe.

    Two may listen, each counting its own steps from 0: the first to ask for a step has it made, the other gets the same one. So
    neither may be more than one step ahead of the other, and both must bring the same sound. One that stops asking may never
    ask again; the other goes on.
    """

    def __init__(self, network: MouthNetwork) -> None:
        self._run = network.run()
        self._normaliser = melspec.Normaliser()
        self._levels = np.full(_LEVELS, -120.0)
        self._number = -1
        self._heard: Heard | None = None

    def hear(self, number: int, window: NDArray[np.float32]) -> Heard:
        """Step `number` of the sound, float32[560] in -1 … 1: `PAST` samples before it, and its own 320.

        Raises `ValueError` for a step that is neither the last one nor the next.
        """
        if number == self._number and self._heard is not None:
            return self._heard
        if number != self._number + 1:
            raise ValueError(f"step {number} of the sound was asked for after step {self._number}")
        windows = np.stack([window[: melspec.WINDOW], window[melspec.HOP :]])
        powers = melspec.frame_powers(windows)
        mels = melspec.network_input(melspec.band_levels(windows), self._normaliser.levels(powers))
        self._levels[:-1] = self._levels[1:]
        self._levels[-1] = 10 * np.log10(float(powers.mean()) + 1e-12)
        step = self._run.step(mels)
        self._number, self._heard = number, Heard(powers, step, self._run.state, float(self._levels.std()))
        return self._heard
