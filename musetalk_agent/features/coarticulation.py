"""Where the phonemes are known beforehand: from timed phonemes to the mouth at any moment.

Each sound pulls the mouth towards its own articulation around its middle; sounds that hold firmly pull harder, rounding
begins early, and lips that must meet do meet, at the frame nearest the sound's middle.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.phonemes import CLOSURE, HOLD, LIP_TUCKS, LIPS_MEET, ROUNDING, SILENCE, TABLE, TUCK, spans
from musetalk_agent.media import Cue

_RATE = 16_000
_BLEND = 0.035 * _RATE
"""Half width of a sound's pull beyond its own edges: lips take 60–80 ms from one articulation to the next."""
_ROUND_EARLY = 0.12 * _RATE
"""Anticipation of lip rounding (Perkell 1990 finds 100–200 ms before the vowel)."""
_ROUNDED = 0.5
_REACH = 0.2 * _RATE  # nothing further away is looked at
_CLOSE_RAMP = 0.045 * _RATE  # lips go from open to closed, and back
_CLOSE_HOLD = 0.012 * _RATE


class CueTrack:
    """Timed phonemes of one segment; grows as cues arrive."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, int]] = []
        self._starts: list[int] = []
        self._longest = 0  # samples

    def add(self, cues: Sequence[Cue]) -> None:
        """Takes cues in any order; those without length are ignored."""
        new = spans((cue.phoneme, cue.start, cue.end) for cue in sorted(cues, key=lambda cue: cue.start))
        self._spans = sorted([*self._spans, *new], key=lambda span: span[1])
        self._starts = [start for _, start, _ in self._spans]
        self._longest = max([self._longest, *(end - start for _, start, end in new)])

    def covers(self, at: int) -> bool:
        """Whether some phoneme (or pause) is known for sample `at`."""
        index = bisect_left(self._starts, at + 1) - 1
        return index >= 0 and at < self._spans[index][2]

    def articulation(self, start: int, end: int) -> NDArray[np.float32]:
        """The mouth of the frame of samples [start, end): articulation vector float32[5].

        Closures and tucks reach 1 in the frame that contains their middle.
        """
        at = (start + end) / 2
        near = self._near(at)
        total = np.zeros(5, np.float32)
        weight = 1e-6
        firm = 0.0
        for kind, first, last in near:
            gap = max(first - at, at - last, 0.0)
            pull = float(HOLD[kind] + 0.02) * max(0.0, 1 - gap / (2 * _BLEND)) ** 2
            total += pull * TABLE[kind]
            weight += pull
        out = total / np.float32(weight)
        out[CLOSURE] = out[TUCK] = 0.0
        for kind, first, last in near:
            if TABLE[kind, ROUNDING] >= _ROUNDED and first - _ROUND_EARLY < at < first:
                early = (1 - (first - at) / _ROUND_EARLY) * 0.8
                firm = max(firm, early * float(TABLE[kind, ROUNDING]))
            if kind in LIPS_MEET:
                out[CLOSURE] = max(out[CLOSURE], _press(first, last, start, end))
            elif kind == LIP_TUCKS:
                out[TUCK] = max(out[TUCK], _press(first, last, start, end))
        out[ROUNDING] = max(out[ROUNDING], firm)
        return out

    def _near(self, at: float) -> list[tuple[int, int, int]]:
        low = bisect_left(self._starts, at - _REACH - self._longest)
        high = bisect_left(self._starts, at + _REACH)
        return [span for span in self._spans[low:high] if span[2] > at - _REACH]

    def silent(self, at: int) -> bool:
        """Whether a pause is known for sample `at`."""
        index = bisect_left(self._starts, at + 1) - 1
        return index >= 0 and self._spans[index][0] == SILENCE and at < self._spans[index][2]


def _press(first: int, last: int, start: int, end: int) -> float:
    """How far a sound [first, last) has the lips pressed in the frame [start, end): 1 when its middle lies in the frame."""
    middle = (first + last) / 2
    if start <= middle < end:
        return 1.0
    gap = abs((start + end) / 2 - middle) - _CLOSE_HOLD - (last - first) / 4
    return float(min(1.0, max(0.0, 1 - gap / _CLOSE_RAMP)))
