"""Where the written words lie in the sound: by the marks of the voice, or by counting sounds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from orchestrator.tts.worker.speech import Cue

_WORD = re.compile(r"\s*\S+\s*")
_NEAR = 2.5
"""Sounds by which a word may be off its place by count: in a phrase some are swallowed."""


def written(text: str) -> list[str]:
    """The words with the space after them; put together they are the text."""
    return _WORD.findall(text)


def marked(text: str, marks: Sequence[tuple[int, int]], samples: int) -> list[Cue]:
    """Words from marks `(first character, sample)`; each lasts until the next begins, the last until `samples`."""
    rising: list[tuple[int, int]] = []
    for character, sample in marks:
        if 0 <= character < len(text) and (not rising or character > rising[-1][0]):
            rising.append((character, sample))
    if not rising:
        return []
    rising[0] = (0, rising[0][1])
    ends = [*rising[1:], (len(text), samples)]
    return [(text[a:b], at, max(at, end)) for (a, at), (b, end) in zip(rising, ends, strict=True)]


def counted(words: Sequence[tuple[str, int]], symbols: Sequence[Cue]) -> list[Cue]:
    """Words, each with how many sounds it has when it is said alone, placed on the sounds of the phrase.

    Spoken words may be fewer (`of the` is said as one): a written word begins where a spoken one does, if one is near.
    """
    sounds = _sounds(symbols)
    total = sum(count for _, count in words)
    if not sounds or not total:
        return []
    starts: list[int] = []
    before, index = 0, 0
    for _, count in words:
        wanted = before * len(sounds) / total
        near = [j for j, (_, begins) in enumerate(sounds) if begins and abs(j - wanted) <= _NEAR and j >= index]
        index = min(near, key=lambda j: abs(j - wanted)) if near else max(index, min(round(wanted), len(sounds) - 1))
        starts.append(sounds[index][0])
        before += count
    ends = [*starts[1:], symbols[-1][2]]
    return [(word, start, end) for (word, _), start, end in zip(words, starts, ends, strict=True)]


def count_sounds(symbols: Sequence[str]) -> int:
    """How many of the phonemes are sounds."""
    return sum(is_letter(symbol) for symbol in symbols)


def is_letter(symbol: str) -> bool:
    """A sound, and no stress mark, modifier, space or punctuation."""
    return any(unicodedata.category(c) in ("Ll", "Lu", "Lo") for c in symbol)


def _sounds(symbols: Sequence[Cue]) -> list[tuple[int, bool]]:
    """First sample of each sound, and whether it begins a spoken word."""
    out: list[tuple[int, bool]] = []
    begins = True
    for symbol, start, _ in symbols:
        if is_letter(symbol):
            out.append((start, begins))
            begins = False
        elif symbol == " " or unicodedata.category(symbol[:1] or " ")[0] == "P":
            begins = True
    return out
