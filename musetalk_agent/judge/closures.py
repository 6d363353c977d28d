"""Whether lips close where they must: at the /p b m/ of a known text.

The text's letters become a rough row of sounds: those that lips show are told apart, vowels are one. The mouth network's phonemes
give each 20 ms a probability of each sound, and the best path through both says when each letter is heard (Viterbi). A letter
that is not heard as such (the b of "lamb") counts for nothing.
"""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features import mouth_network
from musetalk_agent.features.mouth_network import LOOKAHEAD_MS, STEP, MouthNetwork
from musetalk_agent.features.phonemes import CLASSES, LIPS_MEET, SILENCE
from musetalk_agent.judge import bars
from musetalk_agent.judge.film_report import Measure, at_least, not_judged
from musetalk_agent.media_types import FEATURE_RATE, Pcm

Series = NDArray[np.float64]

_SOUNDS = {
    "lips": ("pb", "m"),
    "teeth": ("fv",),
    "tongue": ("td", "n", "l", "th"),
    "hiss": ("sz", "sh"),
    "back": ("kg", "h", "j", "r", "w"),
    "vowel": ("i", "ih", "e", "ae", "a", "uh", "aw", "o", "u", "schwa"),
}
_LETTERS = {
    **dict.fromkeys("pbm", "lips"),
    **dict.fromkeys("fv", "teeth"),
    **dict.fromkeys("tdnl", "tongue"),
    **dict.fromkeys("szcxß", "hiss"),
    **dict.fromkeys("kgqhjrw", "back"),
    **dict.fromkeys("aeiouy", "vowel"),
}
_NAMES = ("pause", *_SOUNDS)
_HEARD = 0.3
"""Probability of /p b m/ that must be heard somewhere in a letter's stretch; noise and other sounds give a few percent."""
_STEPS_MOST = 30_000
"""Ten minutes: the path's memory is this times the letters, a byte each."""
_LETTERS_MOST = 4_000
_SKIP = -2.0
"""Logarithm of how likely a letter is to be silent, against one that is heard."""
_NEAR_S = 0.05
"""A mouth that closes within a frame (25 fps) of a sound's stretch closes for it."""
_CLOSED = 0.25
"""Lips count as closed in the lowest quarter of the mouth's own range, as in models/mouth/README.md."""


def lip_sounds(text: str, voice: Pcm, network: MouthNetwork) -> list[tuple[float, float]] | None:
    """When /p b m/ of a text are heard, in seconds from the first sample, of int16 `[n]` at 16 kHz.

    None where text or sound is too long to be aligned (4,000 letters, ten minutes).
    """
    row = _row(text)
    mels, _ = mouth_network.log_mels(voice)
    mels = mels[: len(mels) // 2 * 2]
    if not len(mels) or not row:
        return []
    if len(row) > _LETTERS_MOST or len(mels) // 2 > _STEPS_MOST:
        return None
    phonemes, _ = network.run().batch(mels)
    path = _path(_grouped(phonemes), row)
    heard = phonemes[:, list(LIPS_MEET)].sum(1)
    found = []
    for state, name in enumerate(row):
        if _NAMES[name] != "lips":
            continue
        steps = np.flatnonzero(path == state)
        if len(steps) and float(heard[steps].max()) >= _HEARD:
            begin, end = (int(k) * STEP / FEATURE_RATE - LOOKAHEAD_MS / 1000 + 0.02 for k in (steps[0], steps[-1] + 1))
            found.append((begin, end))
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


def _row(text: str) -> list[int]:
    """The text as indices of `_NAMES`, a pause that may be of no length around each word."""
    plain = unicodedata.normalize("NFD", text.lower().replace("ph", "f"))
    row: list[int] = [0]
    for word in plain.split():
        last = ""
        for letter in word:
            name = _LETTERS.get(letter, "")
            if name and not (letter == last or (name == "vowel" and row[-1] == _NAMES.index("vowel"))):
                row.append(_NAMES.index(name))
            last = letter if name else last
        if row[-1] != 0:
            row.append(0)
    return row


def _grouped(phonemes: NDArray[np.float32]) -> Series:
    """Log probabilities of `_NAMES`, float64 `[n, 7]`."""
    groups = [[SILENCE], *([CLASSES.index(name) for name in names] for names in _SOUNDS.values())]
    return np.log(np.stack([phonemes[:, group].sum(1) for group in groups], 1).astype(np.float64) + 1e-4)


def _path(scores: Series, row: list[int]) -> NDArray[np.int64]:
    """The place in `row` of each step on the best path through it: stay, go on, or skip one (a letter that is silent)."""
    steps, states = len(scores), len(row)
    best = np.full(states, -np.inf)
    best[:2] = scores[0, row[:2]]
    came = np.zeros((steps, states), np.int8)
    for k in range(1, steps):
        stay, on, over = best, np.full(states, -np.inf), np.full(states, -np.inf)
        on[1:], over[2:] = best[:-1], best[:-2] + _SKIP
        options = np.stack([stay, on, over])
        came[k] = options.argmax(0)
        best = options.max(0) + scores[k, row]
    state = int(states - 1 if states < 2 or best[-1] >= best[-2] else states - 2)
    path = np.empty(steps, np.int64)
    for k in range(steps - 1, -1, -1):
        path[k] = state
        state -= int(came[k, state])
    return path
