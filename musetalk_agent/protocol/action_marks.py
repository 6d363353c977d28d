"""`[wave]` in a text: the avatar plays the clip of that name when the words around it are heard. Pure: no I/O, no time."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

IDLE = "idle"
"""The clip that every avatar has: its own."""
CLIP_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
LEAD_S = 0.2
"""So much before its words are heard an action is asked for: the agent takes up to 0.4 s to begin it, where the clips look most
alike."""
_PARTIAL = re.compile(r"\s?(?P<mark>\[[A-Za-z0-9_-]*\]?)?\Z")
"""What may be the beginning of a mark, at the end of a text that is being written."""
_OPENING = "\"'([{“‘«¿¡"


@dataclass(frozen=True, slots=True)
class ActionMark:
    """A mark that was found: the clip's `name`, and how many letters and digits of the text come before it."""

    name: str
    letters: int


class ActionMarks:
    """Takes the marks out of one text, which may come in pieces. Brackets with any other name in them stay as they are.

    A space before a mark goes with it where no word follows at once, so that "Hello [wave], you" becomes "Hello, you".

    Args:
        names: of the avatar's clips. A mark is written in any case (`[Wave]`).

    Attributes:
        found: marks that were not taken yet, in their order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._written = tuple(f"[{name}]" for name in names)
        known = "|".join(re.escape(name) for name in self._written)
        self._known = re.compile(rf"(\s?)({known})", re.IGNORECASE | re.ASCII) if known else None
        self._held, self._letters, self._begun = "", 0, False
        self.found: deque[ActionMark] = deque()

    def push(self, piece: str) -> str:
        """More of the text; returns what of it is to be spoken. What may become a mark is kept until more comes."""
        if self._known is None:
            return piece
        self._held += piece
        return self._drain(self._known, whole=False)

    def end(self) -> str:
        """The text is complete; returns the rest of it."""
        return "" if self._known is None else self._drain(self._known, whole=True)

    def whole(self, text: str) -> str:
        """A text that is complete."""
        return self.push(text) + self.end()

    def _drain(self, known: re.Pattern[str], *, whole: bool) -> str:
        text, at, out = self._held, 0, ""
        for mark in known.finditer(text):
            if mark.end() == len(text) and not whole:
                break  # what follows decides about the space
            out += self._spoken(text[at : mark.start()])
            self.found.append(ActionMark(mark[2][1:-1].lower(), self._letters))
            after = text[mark.end() : mark.end() + 1]
            if after.isalnum() or (after and after in _OPENING):
                out += self._spoken(mark[1])
            at = mark.end()
        end = len(text) if whole else self._undecided(text, at)
        out += self._spoken(text[at:end])
        self._held = text[end:]
        return out

    def _undecided(self, text: str, begin: int) -> int:
        """Where begins what may become a mark; the text's end where nothing may."""
        partial = _PARTIAL.search(text, begin)
        if partial is None:
            return len(text)
        mark = (partial["mark"] or "").lower()
        return partial.start() if any(written.startswith(mark) for written in self._written) else len(text)

    def _spoken(self, text: str) -> str:
        if not self._begun and self.found:
            text = text.lstrip()  # a mark began the text
        self._begun = self._begun or bool(text)
        self._letters += letters(text)
        return text


class MarkTimes:
    """Says which word a mark comes with, by the words as they are spoken.

    A mark inside a word, or before it, comes with that word.
    """

    def __init__(self, marks: ActionMarks) -> None:
        self._marks = marks
        self._spoken = 0

    def reached(self, word: str) -> list[str]:
        """Names of the marks that come with this word, the next one of the text."""
        self._spoken += letters(word)
        names = []
        while self._marks.found and self._marks.found[0].letters < self._spoken:
            names.append(self._marks.found.popleft().name)
        return names

    def rest(self) -> list[str]:
        """Names of the marks after the last word."""
        names = [mark.name for mark in self._marks.found]
        self._marks.found.clear()
        return names


def letters(text: str) -> int:
    """Letters and digits: what a voice that leaves out spaces and signs keeps."""
    return sum(character.isalnum() for character in text)
