"""Phonemes as the mouth sees them: 25 classes, and the articulation each one asks for.

Symbols are those of espeak-ng and piper (IPA). Sounds that look alike on the lips share a class; classes that look alike but
sound different (/p b/ and /m/) stay apart, because the network hears before it shows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
class Target:
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
_TARGETS: dict[str, Target] = {
    "sil": Target(0.00, 0.0, 0.00, 0.0, 0.0, 0.30),
    "pb": Target(0.10, 0.0, 0.05, 1.0, 0.0, 1.00),
    "m": Target(0.10, 0.0, 0.05, 1.0, 0.0, 1.00),
    "fv": Target(0.16, 0.1, 0.00, 0.0, 1.0, 0.90),
    "th": Target(0.26, 0.1, 0.00, 0.0, 0.0, 0.60),
    "td": Target(0.20, 0.2, 0.00, 0.0, 0.0, 0.50),
    "n": Target(0.20, 0.2, 0.00, 0.0, 0.0, 0.45),
    "l": Target(0.30, 0.1, 0.00, 0.0, 0.0, 0.40),
    "sz": Target(0.16, 0.3, 0.00, 0.0, 0.0, 0.75),
    "sh": Target(0.20, -0.3, 0.45, 0.0, 0.0, 0.75),
    "kg": Target(0.26, 0.0, 0.00, 0.0, 0.0, 0.25),
    "r": Target(0.25, -0.2, 0.40, 0.0, 0.0, 0.55),
    "w": Target(0.12, -0.7, 0.95, 0.0, 0.0, 0.85),
    "h": Target(0.34, 0.0, 0.00, 0.0, 0.0, 0.10),
    "j": Target(0.20, 0.6, 0.00, 0.0, 0.0, 0.50),
    "i": Target(0.26, 1.0, 0.00, 0.0, 0.0, 0.70),
    "ih": Target(0.34, 0.6, 0.00, 0.0, 0.0, 0.55),
    "e": Target(0.48, 0.5, 0.00, 0.0, 0.0, 0.65),
    "ae": Target(0.68, 0.4, 0.00, 0.0, 0.0, 0.75),
    "a": Target(0.75, 0.0, 0.05, 0.0, 0.0, 0.80),
    "uh": Target(0.58, 0.0, 0.00, 0.0, 0.0, 0.60),
    "aw": Target(0.56, -0.3, 0.50, 0.0, 0.0, 0.70),
    "o": Target(0.42, -0.5, 0.70, 0.0, 0.0, 0.70),
    "u": Target(0.20, -0.7, 0.90, 0.0, 0.0, 0.75),
    "schwa": Target(0.38, 0.0, 0.10, 0.0, 0.0, 0.40),
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
