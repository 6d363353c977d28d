"""What viewers read while they hear it: each word when its sound is heard. Decisions only: what was heard is passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORDS_KEPT = 4096
"""Words of a segment that wait or may come again: twenty minutes of them."""


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of text with the space after it, and when it begins, in seconds from the whole segment's beginning."""

    text: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Caption:
    """More of a line of text; with `final` the line is over."""

    line: str
    text: str = ""
    final: bool = False


class Script:
    """The words of a segment, or of the rest of one, in order.

    Args:
        line: names what comes of it.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        self._words: list[Word] = []
        self._shown = 0
        self._open = False

    def add(self, words: Sequence[Word]) -> None:
        """More of them. Past `WORDS_KEPT` those that were shown go first, then the new ones."""
        if len(self._words) + len(words) > WORDS_KEPT:
            del self._words[: self._shown]
            self._shown = 0
        self._words += words[: WORDS_KEPT - len(self._words)]

    def hear(self, second: float) -> Caption | None:
        """What is to be shown when the voice has come to this second."""
        begun = self._shown
        while self._shown < len(self._words) and self._words[self._shown].at_s <= second:
            self._shown += 1
        if begun == self._shown:
            return None
        self._open = True
        return Caption(self._line, "".join(word.text for word in self._words[begun : self._shown]))

    def end(self) -> Caption | None:
        """The segment is over, or cut: what was begun is final. Once."""
        if not self._open:
            return None
        self._open = False
        return Caption(self._line, final=True)

    def rest(self, line: str, second: float) -> Script:
        """The words from this second on, shown or not."""
        rest = Script(line)
        rest._words = [word for word in self._words if word.at_s >= second]
        return rest
