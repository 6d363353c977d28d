"""Frames whose mouth is covered: by a mask, a hand, a cup, a caption. From `FaceNet.mouth_evidence` of every few frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EVERY = 4
"""Every how many pictures the mouth is looked at: it costs as much as the mesh itself, twice."""
_BARE = 50.0
"""Below this evidence a mouth counts as covered, whatever else is seen. For what was measured see docs/avatars.md."""
_SHARE = 0.6
"""The same, as a share of what the clip's own mouth usually gives: talkers kept 0.62 and more of it."""
_MOST = 120.0
"""Above this evidence no mouth is covered, however clear it usually is."""


def covered_frames(total: int, looked: dict[int, float]) -> NDArray[np.bool_]:
    """Which frames of a clip of `total` have their mouths covered: bool `[total]`.

    Args:
        looked: evidence by frame, of the frames that were looked at.

    One look alone says nothing where there are several: they must agree on two neighbours. Frames between a covered and a visible
    look count as covered.
    """
    out = np.zeros(total, bool)
    if not looked:
        return out
    frames = np.array(sorted(looked))
    evidence = np.array([looked[int(frame)] for frame in frames])
    bar = max(_BARE, min(_SHARE * float(np.median(evidence)), _MOST))
    low = evidence < bar
    if len(low) > 1:
        beside = np.concatenate([[False], low, [False]])
        low &= beside[:-2] | beside[2:]
    after = np.clip(np.searchsorted(frames, np.arange(total)), 0, len(frames) - 1)
    before = np.clip(np.searchsorted(frames, np.arange(total), side="right") - 1, 0, len(frames) - 1)
    covered: NDArray[np.bool_] = low[after] | low[before]
    return covered
