"""Phonemes and their articulation: 25 classes of sounds, a target for each, and the mouth at any moment of timed phonemes.

Symbols are those of espeak-ng and piper (IPA). Sounds that look alike on the lips share a class; classes that look alike but
sound different (/p b/ and /m/) stay apart, because the network recognises sounds.

`CueTrack` blends timed phonemes (coarticulation): each pulls the mouth towards its own target around its middle. Firm sounds pull
harder, rounding begins early, and lips that must meet do meet, in the frame nearest to the middle of the sound.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Cue

#: Components of an articulation vector, in order: jaw 0..1, width -1..1, rounding 0..1, closure 0..1, tuck 0..1.
ARTICULATION = ("jaw", "width", "rounding", "closure", "tuck")
JAW, WIDTH, ROUNDING, CLOSURE, TUCK = range(5)

#: Names of the classes; their order is the order of the network's outputs.
CLASSES = (
    *("sil", "pb", "m", "fv", "th", "td", "n", "l", "sz", "sh", "kg", "r", "w", "h", "j"),
    *("i", "ih", "e", "ae", "a", "uh", "aw", "o", "u", "schwa"),
)
SILENCE = CLASSES.index("sil")
LIPS_MEET = (CLASSES.index("pb"), CLASSES.index("m"))
LIP_TUCKS = CLASSES.index("fv")

_SYMBOLS: dict[str, str] = {
    "pb": "p b ɓ ʙ ɸ pʰ",
    "m": "m ɱ",
    "fv": "f v ʋ",
    "th": "θ ð",
    "td": "t d ʈ ɖ ɾ ɗ c ɟ tʰ",
    "n": "n ɲ ɳ",
    "l": "l ɫ ɭ ʎ ɬ",
    "sz": "s z ts dz ɕ ʑ",
    "sh": "ʃ ʒ tʃ dʒ ʂ ʐ tɕ",
    "kg": "k ɡ g ŋ x ɣ q χ ɴ ç ɠ kʰ",
    "r": "ɹ r ʁ ʀ ɻ ɽ ɺ",
    "w": "w ʍ ɥ",
    "h": "h ɦ ʔ ħ ʕ",
    "j": "j ʝ",
    "i": "i ᵻ",
    "ih": "ɪ ɨ",
    "e": "e ɛ",
    "ae": "æ a",
    "a": "ɑ ɒ",
    "uh": "ʌ ɐ",
    "aw": "ɔ",
    "o": "o ɤ ø œ ɵ",
    "u": "u ʊ y ʏ ʉ ɯ",
    "schwa": "ə ɜ ɚ ɝ ɘ ɞ",
}
_CLASS_OF = {symbol: CLASSES.index(name) for name, symbols in _SYMBOLS.items() for symbol in symbols.split()}
#: Marks that carry duration of their own: stress belongs to the sound that follows, length and tone to the one before.
_JOINS_NEXT = frozenset("ˈˌ ^")
_JOINS_PREVIOUS = frozenset("ːˑ̩̃ʲʰ˞̪̯͡ˤ̥̚ⁿ")


@dataclass(frozen=True, slots=True)
class PhonemeTarget:
    """What a class asks of the mouth, and how firmly (`hold` 0..1: how little its neighbours may change it)."""

    jaw: float
    width: float
    rounding: float
    closure: float
    tuck: float
    hold: float


# Openings: relative order of the mean inner-lip apertures of English vowels and consonants in the phonetic literature
# (open > mid > close vowels; alveolar and dental consonants nearly closed, sibilants with the teeth together), scaled so
# that an open stressed vowel reaches 0.75 of the full opening. Firmness: labials and sibilants resist, /h/ and velars do not.
_TARGETS: dict[str, PhonemeTarget] = {
    "sil": PhonemeTarget(0.00, 0.0, 0.00, 0.0, 0.0, 0.30),
    "pb": PhonemeTarget(0.10, 0.0, 0.05, 1.0, 0.0, 1.00),
    "m": PhonemeTarget(0.10, 0.0, 0.05, 1.0, 0.0, 1.00),
    "fv": PhonemeTarget(0.16, 0.1, 0.00, 0.0, 1.0, 0.90),
    "th": PhonemeTarget(0.26, 0.1, 0.00, 0.0, 0.0, 0.60),
    "td": PhonemeTarget(0.20, 0.2, 0.00, 0.0, 0.0, 0.50),
    "n": PhonemeTarget(0.20, 0.2, 0.00, 0.0, 0.0, 0.45),
    "l": PhonemeTarget(0.30, 0.1, 0.00, 0.0, 0.0, 0.40),
    "sz": PhonemeTarget(0.16, 0.3, 0.00, 0.0, 0.0, 0.75),
    "sh": PhonemeTarget(0.20, -0.3, 0.45, 0.0, 0.0, 0.75),
    "kg": PhonemeTarget(0.26, 0.0, 0.00, 0.0, 0.0, 0.25),
    "r": PhonemeTarget(0.25, -0.2, 0.40, 0.0, 0.0, 0.55),
    "w": PhonemeTarget(0.12, -0.7, 0.95, 0.0, 0.0, 0.85),
    "h": PhonemeTarget(0.34, 0.0, 0.00, 0.0, 0.0, 0.10),
    "j": PhonemeTarget(0.20, 0.6, 0.00, 0.0, 0.0, 0.50),
    "i": PhonemeTarget(0.26, 1.0, 0.00, 0.0, 0.0, 0.70),
    "ih": PhonemeTarget(0.34, 0.6, 0.00, 0.0, 0.0, 0.55),
    "e": PhonemeTarget(0.48, 0.5, 0.00, 0.0, 0.0, 0.65),
    "ae": PhonemeTarget(0.68, 0.4, 0.00, 0.0, 0.0, 0.75),
    "a": PhonemeTarget(0.75, 0.0, 0.05, 0.0, 0.0, 0.80),
    "uh": PhonemeTarget(0.58, 0.0, 0.00, 0.0, 0.0, 0.60),
    "aw": PhonemeTarget(0.56, -0.3, 0.50, 0.0, 0.0, 0.70),
    "o": PhonemeTarget(0.42, -0.5, 0.70, 0.0, 0.0, 0.70),
    "u": PhonemeTarget(0.20, -0.7, 0.90, 0.0, 0.0, 0.75),
    "schwa": PhonemeTarget(0.38, 0.0, 0.10, 0.0, 0.0, 0.40),
}
#: float32[25, 5]: articulation targets by class.
TABLE: NDArray[np.float32] = np.array(
    [[getattr(_TARGETS[name], part) for part in ARTICULATION] for name in CLASSES], dtype=np.float32
)
#: float32[25]: firmness by class.
HOLD: NDArray[np.float32] = np.array([_TARGETS[name].hold for name in CLASSES], dtype=np.float32)


def classes_of(symbol: str) -> tuple[int, ...]:
    """Classes of one IPA symbol in order of time: two for diphthongs and affricates spelt as one, one otherwise.

    Stress and length marks inside the symbol are ignored, and those that are one character with their letter. Unknown letters
    become schwa; pauses and punctuation, silence.
    """
    apart = "".join(c if c in _CLASS_OF else unicodedata.normalize("NFD", c) for c in symbol)
    bare = "".join(c for c in apart if c not in _JOINS_NEXT and c not in _JOINS_PREVIOUS)
    if not bare:
        return (SILENCE,)
    if bare in _CLASS_OF:
        return (_CLASS_OF[bare],)
    found = tuple(_CLASS_OF.get(c, CLASSES.index("schwa")) for c in bare if c.isalpha())
    return found or (SILENCE,)


def spans(symbols: Iterable[tuple[str, int, int]]) -> list[tuple[int, int, int]]:
    """`(symbol, start, end)` to `(class, start, end)`, ordered in time: marks join the sound they belong to.

    A symbol of two sounds is split in the middle. Positions keep their unit (samples). Empty spans are left out.
    """
    out: list[tuple[int, int, int]] = []
    pending: int | None = None
    for symbol, start, end in symbols:
        if end <= start:
            continue
        if symbol and all(c in _JOINS_NEXT for c in symbol):
            pending = start if pending is None else pending
            continue
        if symbol and all(c in _JOINS_PREVIOUS for c in symbol):
            if out and out[-1][2] == start:
                out[-1] = (*out[-1][:2], end)
            continue
        begin = start if pending is None else pending
        pending = None
        found = classes_of(symbol)
        edges = [begin + (end - begin) * i // len(found) for i in range(len(found) + 1)]
        out += [(c, a, b) for c, a, b in zip(found, edges, edges[1:], strict=False) if b > a]
    return out


_RATE = 16_000
_BLEND = 0.035 * _RATE
"""How far a phoneme pulls beyond its own edges (half width): lips take 60–80 ms from one articulation to the next."""
_ROUND_EARLY = 0.12 * _RATE
"""Anticipation of lip rounding (Perkell 1990 finds 100–200 ms before the vowel)."""
_ROUNDED = 0.5
_REACH = 0.2 * _RATE  # phonemes further away have no effect
_CLOSE_RAMP = 0.045 * _RATE  # lips go from open to closed, and back
_CLOSE_HOLD = 0.012 * _RATE


class _Spans:
    """Stretches `(class, start, end)` of samples, in order of their starts."""

    def __init__(self) -> None:
        self._all: list[tuple[int, int, int]] = []
        self._starts: list[int] = []
        self._longest = 0  # samples

    def add(self, new: Sequence[tuple[int, int, int]]) -> None:
        self._all = sorted([*self._all, *new], key=lambda span: span[1])
        self._starts = [start for _, start, _ in self._all]
        self._longest = max([self._longest, *(end - start for _, start, end in new)])

    def at(self, sample: int) -> int | None:
        """The class of the last one that begins before or at a sample; None where it has ended, and where there is none."""
        index = bisect_left(self._starts, sample + 1) - 1
        return self._all[index][0] if index >= 0 and sample < self._all[index][2] else None

    def near(self, at: float) -> list[tuple[int, int, int]]:
        """Those that matter for a moment."""
        low = bisect_left(self._starts, at - _REACH - self._longest)
        high = bisect_left(self._starts, at + _REACH)
        return [span for span in self._all[low:high] if span[2] > at - _REACH]


class CueTrack:
    """Timed phonemes of one segment; grows as cues arrive."""

    def __init__(self) -> None:
        self._spoken, self._found = _Spans(), _Spans()

    def add(self, cues: Sequence[Cue]) -> None:
        """Takes cues in any order; those without length are ignored."""
        for into, found in ((self._spoken, False), (self._found, True)):
            here = sorted((cue for cue in cues if cue.found is found), key=lambda cue: cue.start)
            into.add(spans((cue.phoneme, cue.start, cue.end) for cue in here))

    def covers(self, at: int) -> bool:
        """Whether a voice's phoneme (or pause) is known for sample `at`."""
        return self._spoken.at(at) is not None

    def articulation(self, start: int, end: int) -> NDArray[np.float32]:
        """The mouth of the frame of samples [start, end): articulation vector float32[5].

        Closures and tucks reach 1 in the frame that contains their middle.
        """
        at = (start + end) / 2
        near = self._spoken.near(at)
        total = np.zeros(5, np.float32)
        weight = 1e-6
        firm = 0.0
        for kind, first, last in near:
            gap = max(first - at, at - last, 0.0)
            pull = float(HOLD[kind] + 0.02) * max(0.0, 1 - gap / (2 * _BLEND)) ** 2
            total += pull * TABLE[kind]
            weight += pull
        out = total / np.float32(weight)
        for kind, first, _ in near:
            if TABLE[kind, ROUNDING] >= _ROUNDED and first - _ROUND_EARLY < at < first:
                early = (1 - (first - at) / _ROUND_EARLY) * 0.8
                firm = max(firm, early * float(TABLE[kind, ROUNDING]))
        out[CLOSURE], out[TUCK] = _pressed(near, start, end)
        out[ROUNDING] = max(out[ROUNDING], firm)
        return out

    def pressed(self, mouth: NDArray[np.float32], start: int, end: int) -> NDArray[np.float32]:
        """A mouth, float32[5], in the frame of samples [start, end), its lips closed and tucked where found phonemes ask it."""
        near = self._found.near((start + end) / 2)
        if not near:
            return mouth
        made = mouth.copy()
        made[[CLOSURE, TUCK]] = np.maximum(made[[CLOSURE, TUCK]], _pressed(near, start, end))
        return made

    def silent(self, at: int) -> bool:
        """Whether a voice's pause is known for sample `at`."""
        return self._spoken.at(at) == SILENCE


def _pressed(near: list[tuple[int, int, int]], start: int, end: int) -> tuple[float, float]:
    """How far sounds have the lips closed, and tucked, in the frame [start, end): 0 … 1."""
    closed = [_press(first, last, start, end) for kind, first, last in near if kind in LIPS_MEET]
    tucked = [_press(first, last, start, end) for kind, first, last in near if kind == LIP_TUCKS]
    return max(closed, default=0.0), max(tucked, default=0.0)


def _press(first: int, last: int, start: int, end: int) -> float:
    """How far a sound [first, last) has the lips pressed in the frame [start, end): 1 when its middle lies in the frame."""
    middle = (first + last) / 2
    if start <= middle < end:
        return 1.0
    gap = abs((start + end) / 2 - middle) - _CLOSE_HOLD - (last - first) / 4
    return float(min(1.0, max(0.0, 1 - gap / _CLOSE_RAMP)))
