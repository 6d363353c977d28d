"""Measures whether lips close where they must: at the /p b m/ of a known text.

`forced_alignment` says when each sound is heard, or `alignment` when each letter is. A letter that is not heard as such (the b of
"lamb") counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.mouth_network import MouthNetwork
from musetalk_agent.features.phonemes import LIPS_MEET
from musetalk_agent.judge import bars
from musetalk_agent.judge.alignment import NAMES, Alignment, align, step_s
from musetalk_agent.judge.film_report import Measure, at_least, not_judged
from musetalk_agent.judge.forced_alignment import AlignedWord, lip_phones, refined
from musetalk_agent.media_types import Pcm

Series = NDArray[np.float64]

_HEARD = 0.3
"""Probability of /p b m/ that must be heard somewhere in a letter's stretch; noise and other sounds give a few percent."""
_NEAR_S = 0.05
"""A mouth that closes within a frame (25 fps) of a sound's stretch closes for it."""
_CLOSED = 0.25
"""Lips count as closed in the lowest quarter of the mouth's own range, as in models/mouth/README.md."""


@dataclass(frozen=True)
class HeardText:
    """When the words of a text are heard, and its /p b m/ (begin and end): seconds from the sound's first sample."""

    words: list[AlignedWord]
    lips: list[tuple[float, float]]


def heard_text(text: str, voice: Pcm, network: MouthNetwork) -> HeardText | None:
    """Finds a text in int16 `[n]` at 16 kHz; blocks for 0.1 s a second of sound.

    None where text or sound cannot be aligned: more than 4,000 letters or ten minutes, or letters that are not Latin.
    """
    aligned = align(text, voice, network)
    if aligned is None:
        return None
    words = refined(aligned, text, voice)
    phones = lip_phones(words)
    return HeardText(words, phones if phones is not None else _lip_letters(aligned))


def lip_sounds(text: str, voice: Pcm, network: MouthNetwork) -> list[tuple[float, float]] | None:
    """When /p b m/ of a text are heard; see `heard_text`."""
    found = heard_text(text, voice, network)
    return None if found is None else found.lips


def _lip_letters(aligned: Alignment) -> list[tuple[float, float]]:
    """The same by the letters that are heard as such."""
    heard = aligned.phonemes[:, list(LIPS_MEET)].sum(1)
    found = []
    for state, name in enumerate(aligned.row):
        steps = np.flatnonzero(aligned.path == state)
        if NAMES[name] == "lips" and len(steps) and float(heard[steps].max()) >= _HEARD:
            found.append((step_s(int(steps[0])), step_s(int(steps[-1]) + 1)))
    return found


def closures(times: Series, aperture: Series, sounds: list[tuple[float, float]]) -> Measure:
    """The share of `sounds` (begin and end in the film's seconds) at which the mouth closes; `aperture` may be NaN."""
    known = np.isfinite(aperture)
    if known.sum() < 2:
        return not_judged("no mouth is seen.")
    low, high = np.percentile(aperture[known], (2, 98))
    closed, missed = 0, []
    for begin, end in sounds:
        near = known & (times >= begin - _NEAR_S) & (times <= end + _NEAR_S)
        if not near.any():
            continue
        if float(aperture[near].min()) <= low + _CLOSED * (high - low):
            closed += 1
        else:
            missed.append((begin + end) / 2)
    total = closed + len(missed)
    if total < bars.CLOSURES_LEAST:
        return not_judged(
            f"only {total} of /p b m/ were found in text, sound and picture; {bars.CLOSURES_LEAST} are needed."
        )
    return at_least(
        closed / total, bars.CLOSURES, f"the lips close at {closed} of {total} /p b m/ only.", tuple(missed[:4])
    )
