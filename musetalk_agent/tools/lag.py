"""How much later the mouth that is seen moves than the one that is heard: correlation over lags, to a fraction of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.tools.mouth_tracks import MouthTrack

Series = NDArray[np.float64]

REACH_S = 0.5
"""Lags looked at, to both sides."""
LEAST_S = 2.0
"""Pictures with a face, beside sound, that are needed, in seconds."""
_STEP_S = 0.005
_DRIFT_S = 1.0
"""What changes more slowly than this is the pose, the talker's habit or the tracker's mood, and no syllable."""
_PEAK_S = 0.15
"""Half the width of the correlation's own peak: speech looks like itself a syllable later, which is no rival but the next one."""


@dataclass(frozen=True)
class Lag:
    """The best lag.

    Args:
        lag_s: positive when the lips are late, within ±`REACH_S`.
        correlation: Pearson's, of the openings seen and heard at that lag, slow changes taken off both.
        confidence: by how much `correlation` passes the best one that is more than `_PEAK_S` away, 0 … 1. A lag at the edge of the
            reach has 0: the true one may lie beyond.
    """

    lag_s: float
    correlation: float
    confidence: float


def lag_of(seen: MouthTrack, heard: MouthTrack) -> Lag | None:
    """The lag at which the two agree best; None where less than `LEAST_S` can be compared.

    `heard` must be evenly spaced. Frames without a face (NaN) are left out.
    """
    known = np.isfinite(seen.aperture)
    if len(heard.times) < 2 or known.sum() < 2:
        return None
    period = float(np.median(np.diff(seen.times)))
    times = seen.times[known]
    if ((times >= heard.times[0]) & (times <= heard.times[-1])).sum() * period < LEAST_S:
        return None
    filled = np.interp(seen.times, seen.times[known], seen.aperture[known])
    pictures = _quick(filled, _DRIFT_S / period)[known]
    sound = _quick(heard.aperture, _DRIFT_S / float(heard.times[1] - heard.times[0]))
    steps = round(REACH_S / _STEP_S)
    lags = np.arange(-steps, steps + 1) * _STEP_S
    agreement = np.array([_agreement(times - lag, pictures, heard.times, sound) for lag in lags])
    best = int(agreement.argmax())
    peak = float(agreement[best])
    if best in (0, len(lags) - 1):
        return Lag(float(lags[best]), peak, 0.0)
    rival = float(agreement[np.abs(lags - lags[best]) > _PEAK_S].max())
    before, after = agreement[best - 1], agreement[best + 1]
    bend = 2 * peak - before - after
    offset = (after - before) / (2 * bend) if bend > 0 else 0.0  # top of the parabola through three points
    return Lag(float(lags[best] + offset * _STEP_S), peak, min(1.0, max(0.0, peak - rival)))


def _quick(values: Series, window: float) -> Series:
    """`values` without their moving mean over about `window` of them."""
    half = max(1, round(window / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - half), np.minimum(len(values), index + half + 1)
    quick: Series = values - (total[high] - total[low]) / (high - low)
    return quick


def _agreement(times: Series, pictures: Series, heard_times: Series, sound: Series) -> float:
    """Correlation of `pictures` with the sound at `times`, where there is sound."""
    inside = (times >= heard_times[0]) & (times <= heard_times[-1])
    one, other = pictures[inside], np.interp(times[inside], heard_times, sound)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale > 1e-12 else 0.0
