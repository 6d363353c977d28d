"""Where the words of a text lie in its sound, where nobody tells."""

from __future__ import annotations

import re

from musetalk_agent.protocol.messages import CaptionWord

_WORD = re.compile(r"\s*\S+\s*")
_CLAUSE_MARKS = "，、；：。！？,;:.!?"
LONGEST = 40
"""A longer piece is cut, behind a mark where there is one: scripts without spaces have no words to go by."""


def words(text: str) -> list[str]:
    """The text in pieces for viewers to read: words with the space after them. Put together they are the text."""
    out: list[str] = []
    for word in _WORD.findall(text):
        while len(word.rstrip()) > LONGEST:
            cut = max(word.rfind(mark, 0, LONGEST) for mark in _CLAUSE_MARKS) + 1 or LONGEST
            out.append(word[:cut])
            word = word[cut:]
        out.append(word)
    return out


def spread(text: str, start: int, end: int) -> tuple[CaptionWord, ...]:
    """The words of a sentence over its sound, samples `start` to `end`, each as long as its share of the letters."""
    return weighted([(word, max(1, sum(c.isalnum() for c in word))) for word in words(text)], start, end)


def weighted(pieces: list[tuple[str, int]], start: int, end: int) -> tuple[CaptionWord, ...]:
    """Pieces of a sentence over its sound, each as long as its weight says."""
    total, before, out = sum(weight for _, weight in pieces), 0, []
    for piece, weight in pieces:
        begin, before = before, before + weight
        first, last = (start + (end - start) * at // total for at in (begin, before))
        out.append(CaptionWord(text=piece, start=first, end=last))
    return tuple(out)
