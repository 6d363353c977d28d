"""Frames whose mouth is covered: by a mask, a hand, a cup, a caption. From `FaceNet.mouth_evidence` of every few frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EVERY = 4
"""Every how many pictures the mouth is looked at: it costs as much as the mesh itself, twice."""
_BARE = 50.0
"""Below this evidence a mouth counts as covered, whatever else is seen. For what was measured see docs/reference/avatars.md."""
_SHARE = 0.6
"""The same, as a share of what the clip's own mouth usually gives: talkers kept 0.62 and more of it."""
_MOST = 120.0
"""Above this evidence no mouth is covered, however clear it usually is."""
_NEAR = np.radians(12.0)
"""Looks at a head within this of a look's own direction (radians) are compared with it: turned by 40° a visible mouth gives 0.41
to 0.7 of what it gives seen from the front, and 0.67 and more of what others in its direction give."""
_ALONE, _BARE_ALONE = 6.0, 70.0
"""In a picture alone, which nothing can be compared with: the weight of the mouth's evidence without the eyes, and the bar for both
together. Of 55 bare mouths, plain, grey, dimmed and under sunglasses, the least gave 86 but for one (56), which the evidence with
the eyes alone took for covered as well."""


def covered_frames(
    total: int, looked: dict[int, float], angles: NDArray[np.float32], alone: float | None = None
) -> NDArray[np.bool_]:
    """Which frames of a clip of `total` have their mouths covered: bool `[total]`.

    Args:
        looked: evidence by frame, of the frames that were looked at.
        angles: the head's direction in each frame, float32 `[total, 2]` in radians, from `head_angles`.
        alone: `FaceNet.mouth_without_eyes` of the first frame, which decides where there is no other.

    One look alone says nothing where there are several: they must agree on two neighbours. Frames between a covered and a visible
    look count as covered.
    """
    out = np.zeros(total, bool)
    if not looked:
        return out
    frames = np.array(sorted(looked))
    evidence = np.array([looked[int(frame)] for frame in frames])
    if total == 1 and alone is not None:
        return np.array([evidence[0] + _ALONE * alone < _BARE_ALONE])
    low = evidence < np.clip(_SHARE * _usual(evidence, angles[frames]), _BARE, _MOST)
    if len(low) > 1:
        beside = np.concatenate([[False], low, [False]])
        low &= beside[:-2] | beside[2:]
    after = np.clip(np.searchsorted(frames, np.arange(total)), 0, len(frames) - 1)
    before = np.clip(np.searchsorted(frames, np.arange(total), side="right") - 1, 0, len(frames) - 1)
    covered: NDArray[np.bool_] = low[after] | low[before]
    return covered


def _usual(evidence: NDArray[np.float64], angles: NDArray[np.float32]) -> NDArray[np.float64]:
    """For each look the median evidence of the looks at a head in about the same direction, float64 `[n]`."""
    away = np.linalg.norm(angles[:, None] - angles[None], axis=2)
    return np.array([np.median(evidence[near]) for near in away <= _NEAR])
