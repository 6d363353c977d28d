"""When the letters and words of a known text are heard, without a recogniser.

Each letter of the text maps to a class of sounds: classes differ where lips differ, and all vowels share one. The mouth network's
phonemes give the probability of each class for every 20 ms. A Viterbi path through both gives the time of each letter.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features import mouth_network
from musetalk_agent.features.mouth_network import LOOKAHEAD_MS, STEP, MouthNetwork
from musetalk_agent.features.phonemes import CLASSES, SILENCE
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
NAMES = ("pause", *_SOUNDS)
_STEPS_MOST = 30_000
"""Ten minutes: the path's memory is this times the letters, a byte each."""
_LETTERS_MOST = 4_000
_SKIP = -2.0
"""Logarithm of how likely a letter is to be silent, against one that is heard."""


@dataclass(frozen=True)
class Alignment:
    """A text aligned with its audio.

    Args:
        row: the text as indices of `NAMES`, a pause around each word.
        path: int64 `[n]`, the place in `row` that each step of 20 ms belongs to; `step_s` has their times.
        phonemes: float32 `[n, 25]`, what is heard.
    """

    row: list[int]
    path: NDArray[np.int64]
    phonemes: NDArray[np.float32]


def align(text: str, voice: Pcm, network: MouthNetwork) -> Alignment | None:
    """Aligns a text with int16 `[n]` at 16 kHz.

    None where one of them is too long (4,000 letters, ten minutes), and where most of the text's letters are not Latin ones.
    """
    letters = [letter for letter in text if letter.isalpha()]
    if sum("LATIN" in unicodedata.name(letter, "") for letter in letters) < len(letters) / 2:
        return None
    row = _row(text)
    mels, _ = mouth_network.log_mels(voice)
    mels = mels[: len(mels) // 2 * 2]
    if not len(mels) or len(row) < 2:
        return Alignment([], np.zeros(0, np.int64), np.zeros((0, len(CLASSES)), np.float32))
    if len(row) > _LETTERS_MOST or len(mels) // 2 > _STEPS_MOST:
        return None
    phonemes, _ = network.run().batch(mels)
    return Alignment(row, _path(grouped(phonemes), row), phonemes)


def step_s(step: int) -> float:
    """When a step begins, seconds from the sound's first sample."""
    return step * STEP / FEATURE_RATE - LOOKAHEAD_MS / 1000 + 0.02


def step_at(second: float) -> int:
    """The step that begins last before a moment."""
    return int((second - step_s(0)) * FEATURE_RATE // STEP)


def word_times(text: str, voice: Pcm, network: MouthNetwork) -> list[tuple[str, float, float]] | None:
    """Each word of a text with its begin and end, seconds from the first sample of int16 `[n]` at 16 kHz, ascending.

    A word of which nothing is heard, such as a number in digits, lies between its neighbours. None as in `align`.
    """
    aligned = align(text, voice, network)
    return None if aligned is None else placed_words(aligned, text, len(voice) / FEATURE_RATE)


def placed_words(aligned: Alignment, text: str, length_s: float) -> list[tuple[str, float, float]]:
    """Each word of an aligned text with its begin and end, seconds of a sound of `length_s`; see `word_times`."""
    found: list[tuple[str, float, float] | None] = []
    state, words = 1, text.split()
    for word in words:
        letters = max(0, len(_row(word)) - 2)  # without the pauses around it
        steps = np.flatnonzero((aligned.path >= state) & (aligned.path < state + letters))
        state += letters + 1 if letters else 0
        if not len(steps):
            found.append(None)
            continue
        begin, end = (min(max(step_s(int(k)), 0.0), length_s) for k in (steps[0], steps[-1] + 1))
        found.append((word, begin, end))
    return _filled(words, found, length_s)


def _filled(
    words: list[str], found: list[tuple[str, float, float] | None], length_s: float
) -> list[tuple[str, float, float]]:
    """Words without a time share the room between their neighbours."""
    made: list[tuple[str, float, float]] = []
    at = 0
    while at < len(found):
        known = found[at]
        if known is not None:
            made.append(known)
            at += 1
            continue
        stop = next((k for k in range(at, len(found)) if found[k] is not None), len(found))
        begin = made[-1][2] if made else 0.0
        after = found[stop] if stop < len(found) else None
        step = ((after[1] if after is not None else length_s) - begin) / (stop - at)
        made += [(words[at + k], begin + k * step, begin + (k + 1) * step) for k in range(stop - at)]
        at = stop
    return made


def _row(text: str) -> list[int]:
    """The text as indices of `NAMES`, a pause that may be of no length around each word."""
    plain = unicodedata.normalize("NFD", text.lower().replace("ph", "f"))
    row: list[int] = [0]
    for word in plain.split():
        last = ""
        for letter in word:
            name = _LETTERS.get(letter, "")
            if name and not (letter == last or (name == "vowel" and row[-1] == NAMES.index("vowel"))):
                row.append(NAMES.index(name))
            last = letter if name else last
        if row[-1] != 0:
            row.append(0)
    return row


def grouped(phonemes: NDArray[np.float32]) -> Series:
    """Log probabilities of `NAMES`, float64 `[n, 7]`."""
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
