"""A text that somebody elsewhere reads aloud: which of it has been heard, word by word. Without I/O.

The reader sends sound and tells of each letter when it sounds. Sound goes on up to the last word that is whole, so that a
connection that breaks in mid-word leaves no half of it behind: another one reads on with that word, and none is said twice.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from musetalk_agent.protocol.messages import CaptionWord

_WIDE = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_UNIT = re.compile(rf"(?:{_WIDE}[^\s\w]*|(?:(?!{_WIDE})\S)+)\s*")
"""A word with the space after it; a character of scripts that write words without spaces."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A character as it sounds: milliseconds from the beginning of the sound it came with."""

    char: str
    start_ms: float
    length_ms: float


@dataclass(frozen=True, slots=True)
class _Unit:
    """A word, and how many letters of the whole text there are up to its end."""

    text: str
    end: int


class AlignmentTracker:
    """One utterance over all connections that it takes. Samples count from its beginning."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.given = 0
        """Samples handed out."""
        self._units: deque[_Unit] = deque()
        self._letters = 0
        self._behind = 0  # letters up to the last whole word
        self._told = 0
        self._word_at: int | None = None
        self._word_end = 0
        self._held = bytearray()
        self._blind = False
        self._letters_told = False

    def add(self, sentence: str) -> None:
        """More text to be read, after what is there."""
        for unit in _UNIT.findall(sentence.strip() + " "):
            self._letters += len(unit.rstrip())
            self._units.append(_Unit(unit, self._letters))

    @property
    def unread(self) -> str:
        """The words of which nothing has been handed out."""
        return "".join(unit.text for unit in self._units).strip()

    @property
    def ahead(self) -> int:
        """Letters that are to be read; 0 where the reader does not tell what it reads."""
        return 0 if self._blind else self._letters - self._behind

    @property
    def letters(self) -> int:
        """Letters of the text so far."""
        return self._letters

    @property
    def held(self) -> int:
        """Samples that wait for the end of their word."""
        return len(self._held) // 2

    @property
    def blind(self) -> bool:
        """Whether the reader tells nothing of what it reads."""
        return self._blind

    @property
    def resumable(self) -> bool:
        """Whether it is known where to go on."""
        return not (self._blind and self.given)

    def hear(self, pcm: bytes, letters: Iterable[Letter] | None) -> tuple[bytes, tuple[CaptionWord, ...]]:
        """Sound that came, with its letters if they are told. Returns what may be heard now, and the words that begin in it."""
        begin = self.given + len(self._held) // 2
        self._held += pcm
        self._blind = letters is None and not self._letters_told if pcm else self._blind
        self._letters_told = self._letters_told or letters is not None
        words: list[CaptionWord] = []
        for letter in letters or ():
            if letter.char.isspace():
                self._settle(words)
                continue
            at = begin + round(letter.start_ms * self.sample_rate / 1000)
            self._word_at = at if self._word_at is None else self._word_at
            self._word_end = at + round(letter.length_ms * self.sample_rate / 1000)
            self._told += 1
            if self._units and self._told >= self._units[0].end:
                self._whole(words)
        whole = self._word_at is None
        samples = len(self._held) // 2 if whole else max(0, (self._word_at or 0) - self.given)
        return self._give(samples), tuple(words)

    def broken(self) -> None:
        """The connection is gone. What had not been handed out will be read again by the next one."""
        self._held.clear()
        self._told, self._word_at = self._behind, None

    def finish(self) -> tuple[bytes, tuple[CaptionWord, ...]]:
        """Everything was read: the rest, and the words that the reader did not tell of."""
        pcm = self._give(len(self._held) // 2)
        words = tuple(CaptionWord(text=unit.text, start=self.given, end=self.given) for unit in self._units)
        self._units.clear()
        self._behind = self._told = self._letters
        return pcm, words

    def _settle(self, words: list[CaptionWord]) -> None:
        """A space: words that were counted apart, by a letter more or less, meet again here."""
        if self._word_at is None or not self._units:
            return
        if self._units[0].end - self._told <= self._told - self._behind:
            self._whole(words)
        else:
            self._told, self._word_at = self._behind, None

    def _whole(self, words: list[CaptionWord]) -> None:
        unit = self._units.popleft()
        start = self._word_at if self._word_at is not None else self._word_end
        words.append(CaptionWord(text=unit.text, start=start, end=self._word_end))
        self._behind = self._told = unit.end
        self._word_at = None

    def _give(self, samples: int) -> bytes:
        pcm = bytes(self._held[: 2 * samples])
        del self._held[: 2 * samples]
        self.given += len(pcm) // 2
        return pcm
