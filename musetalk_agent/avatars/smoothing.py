"""One-Euro smoothing over time, without lag: a clip is known whole, so it is filtered in both directions.

The filter is Casiez, Roussel and Vogel, "1 € Filter", CHI 2012: a first-order low pass whose cutoff rises with speed, so that
a still point does not tremble and a moving one is not held back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Track = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OneEuro:
    """Settings of the filter; values are in the caller's unit, time in seconds.

    Args:
        min_cutoff_hz: cutoff at rest; lower is steadier.
        beta: how much the cutoff rises with speed (Hz per unit per second).
        speed_cutoff_hz: cutoff of the low pass over the speed itself.
    """

    min_cutoff_hz: float = 1.0
    beta: float = 0.0
    speed_cutoff_hz: float = 1.0

    def forward(self, values: Track, rate_hz: float) -> Track:
        """Filters float32 `[n, …]` causally at `rate_hz` samples per second, every column by itself."""
        smooth = np.array(values, np.float32)
        speed = np.zeros_like(smooth[0]) if len(smooth) else smooth
        speed_gain = _gain(self.speed_cutoff_hz, rate_hz)
        for k in range(1, len(smooth)):
            speed = speed + speed_gain * ((values[k] - smooth[k - 1]) * np.float32(rate_hz) - speed)
            cutoff = self.min_cutoff_hz + self.beta * np.abs(speed)
            angle = (2 * math.pi / rate_hz) * cutoff
            smooth[k] = smooth[k - 1] + angle / (angle + 1) * (values[k] - smooth[k - 1])
        return smooth

    def both_ways(self, values: Track, rate_hz: float) -> Track:
        """Mean of the filter run forwards and backwards: their lags cancel, so that nothing trails behind what moves."""
        ahead = self.forward(values, rate_hz)
        behind = self.forward(np.ascontiguousarray(values[::-1]), rate_hz)[::-1]
        return ((ahead + behind) / 2).astype(np.float32)


def _gain(cutoff_hz: float, rate_hz: float) -> np.float32:
    angle = 2 * math.pi * cutoff_hz / rate_hz
    return np.float32(angle / (angle + 1))
