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
_EMPHASIS = 0.5
_EMPHASIS_S = 0.04
"""This share of the value a moment before is taken off each: movements count for more than positions, and the peak is narrower.
The moment is a whole number of pictures."""
_MEMORY_S = 0.4
"""How far apart moments may be and still be alike, for the count of independent ones."""
_TRUST = 0.6
"""Share of the independent moments that count as evidence. With all of them, 12 % of strangers were believed (docs/tools.md)."""
_MOST = 0.9
"""Correlations above it count alike: no real mouth follows a prediction more closely (docs/tools.md)."""
_FRAME_S = 0.04
_NO_CORRELATION = 1e-12


@dataclass(frozen=True)
class Lag:
    """The best lag.

    Args:
        lag_s: positive when the lips are late, within ±`REACH_S`.
        correlation: Pearson's, of the openings seen and heard at that lag, slow changes taken off both and movements emphasised.
        confidence: the probability that the true lag lies within a frame of 25 fps of this one, 0 … 1: against every other lag
            within `REACH_S`, and against lips that say something else. A lag at the edge of the reach has 0: the true one may
            lie beyond.
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
    filled = MouthTrack(seen.times, np.interp(seen.times, times, seen.aperture[known]))
    before_s = max(1, round(_EMPHASIS_S / period)) * period
    pictures = _movements(filled, period, before_s)
    sound = _movements(heard, float(heard.times[1] - heard.times[0]), before_s)
    steps = round(REACH_S / _STEP_S)
    lags = np.arange(-steps, steps + 1, dtype=np.float64) * _STEP_S
    found = [_agreement(times - lag, pictures[known], heard.times, sound) for lag in lags]
    agreement, shared = np.array([r for r, _ in found]), np.array([float(count) for _, count in found])
    alike = _alike(pictures, np.interp(seen.times, heard.times, sound), round(_MEMORY_S / period))
    best = int(agreement.argmax())
    peak = float(agreement[best])
    if best in (0, len(lags) - 1):
        return Lag(float(lags[best]), peak, 0.0)
    before, after = agreement[best - 1], agreement[best + 1]
    bend = 2 * peak - before - after
    offset = (after - before) / (2 * bend) if bend > 0 else 0.0  # top of the parabola through three points
    return Lag(float(lags[best] + offset * _STEP_S), peak, _confidence(lags, agreement, shared / alike, best))


def _confidence(lags: Series, agreement: Series, moments: Series, best: int) -> float:
    """The share of lags within a frame of the best one in all that may be true.

    `moments` independent pairs with the correlation r are (1 − r²)^(−moments / 2) times as likely if they belong together, by a
    normal model, as if they do not. Each lag has the same chance beforehand, and that none is true has as much as all together.
    """
    weight = -_TRUST * moments / 2 * np.log1p(-(np.clip(agreement, 0, _MOST) ** 2))
    top = float(weight.max())
    likely = np.exp(weight - top)
    near = np.abs(lags - lags[best]) < _FRAME_S + _STEP_S / 2
    return float(likely[near].sum() / (likely.sum() + len(lags) * np.exp(-top)))


def _alike(one: Series, other: Series, reach: int) -> float:
    """How many pairs are worth one independent pair, by Bartlett's formula: both tracks resemble themselves a moment later."""
    one, other = one - one.mean(), other - other.mean()
    scale = float((one @ one) * (other @ other))
    if scale < _NO_CORRELATION**2:
        return 1.0
    reach = min(reach, len(one) - 1)
    pairs = [float((one[k:] @ one[:-k]) * (other[k:] @ other[:-k])) for k in range(1, reach + 1)]
    return max(1.0, 1 + 2 * sum(pairs) / scale)


def _movements(track: MouthTrack, period: float, before_s: float) -> Series:
    """The track without its slow changes, less a share of what it was `before_s` ago."""
    quick = _quick(track.aperture, _DRIFT_S / period)
    moved: Series = quick - _EMPHASIS * np.interp(track.times - before_s, track.times, quick)
    return moved


def _quick(values: Series, window: float) -> Series:
    """`values` without their moving mean over about `window` of them."""
    half = max(1, round(window / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - half), np.minimum(len(values), index + half + 1)
    quick: Series = values - (total[high] - total[low]) / (high - low)
    return quick


def _agreement(times: Series, pictures: Series, heard_times: Series, sound: Series) -> tuple[float, int]:
    """Correlation of `pictures` with the sound at `times`, where there is sound, and of how many."""
    inside = (times >= heard_times[0]) & (times <= heard_times[-1])
    count = int(inside.sum())
    if count < 2:
        return 0.0, count
    one, other = pictures[inside], np.interp(times[inside], heard_times, sound)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return (float(one @ other) / scale if scale > _NO_CORRELATION else 0.0), count
