"""A text that is still being written, and the sentences of it that can be spoken already."""

from __future__ import annotations

import asyncio
import re
from collections import deque

from orchestrator.tts import text as texts

SENTENCES_WAITING = 64
"""Sentences that wait for the voice; who writes more waits with them."""
RIPE_S = 0.08
"""A sentence that ends where the text ends so far is taken after this long: what comes may belong to it ("3." and "14")."""
LONGEST = 8 * texts.PART_CHARACTERS
"""Characters of a sentence that is given out whole; providers refuse some thousands at once, and nothing is heard meanwhile."""
_SHORTEST_CLAUSE = 12
"""Characters; a shorter beginning ("Well,") waits for what follows."""
_SENTENCE = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s)|[。！？؟۔।]+[”’」』）]*|\n+")
_RIPE = re.compile(r"[.!?…]+[\"'”’»)\]*_]*$")
_FOLLOWING = re.compile(r"\s*(\S?)")
_LIST_NUMBER = re.compile(r"\s*\d{1,3}\.")
"""The full stop of a number at the beginning ends no sentence: "1. Milk", "42. That is all."."""
_CLAUSE = re.compile(r"[,;:][\"'”’»)]*(?=\s)|\s[-–—]+(?=\s)|—|[，、；：،]")


class Splitter:
    """Cuts a growing text: whole sentences, a clause where nothing was cut yet, and long sentences where they can bear it.

    What comes out is clean (see `text.clean`) and never empty.
    """

    def __init__(self) -> None:
        self._buffer = ""
        self._first = True

    def push(self, piece: str) -> list[str]:
        """More text. Returns what is complete now."""
        text, begin = self._buffer + piece, 0
        out: list[str] = []
        while (cut := self._sentence(text, begin) or self._clause(text, begin)) is not None:
            out += self._cleaned(text[begin:cut])
            begin = cut
        self._buffer = text[begin:]
        return out

    @property
    def ripe(self) -> bool:
        """Whether the text so far ends as sentences end."""
        found = _RIPE.search(self._buffer)
        if found is None or texts.unclosed(self._buffer):
            return False
        return not texts.abbreviated(self._buffer[: found.end()])

    def flush(self) -> list[str]:
        """What is left."""
        taken, self._buffer = self._buffer, ""
        return self._cleaned(taken)

    def _cleaned(self, taken: str) -> list[str]:
        cleaned = " ".join(texts.clean(taken).split())
        if not cleaned:
            return []
        self._first = False
        return [cleaned]

    @staticmethod
    def _sentence(text: str, begin: int) -> int | None:
        """Where the sentence that begins at `begin` ends, if that is known and not too far."""
        for match in _SENTENCE.finditer(text, begin, begin + LONGEST + 1):
            following = _FOLLOWING.match(text, match.end())
            assert following is not None
            before = text[begin : match.end()]
            if following[1].islower() or texts.abbreviated(before) or _LIST_NUMBER.fullmatch(before):
                continue
            if not texts.unclosed(before):
                return match.end()
        return None

    def _clause(self, text: str, begin: int) -> int | None:
        """Where a sentence that does not end yet, or only far away, is cut."""
        size = len(text) - begin
        long = size > texts.PART_CHARACTERS
        if not (self._first or long):
            return None
        within = begin + 2 * texts.PART_CHARACTERS
        clauses = [
            m.end()
            for m in _CLAUSE.finditer(text, begin, within + 1)
            if m.end() >= begin + _SHORTEST_CLAUSE and not texts.unclosed(text[begin : m.end()])
        ]
        if clauses:
            return clauses[-1] if long else clauses[0]
        if size <= 2 * texts.PART_CHARACTERS or (size <= LONGEST and texts.unclosed(text[begin:])):
            return None
        space = text.rfind(" ", begin + 1, within)
        return space if space > begin else within


class GrowingText:
    """Between who writes and the voice that reads. For one event loop; one writer, one reader."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._ready: deque[str] = deque()
        self._ended = False
        self._more = asyncio.Event()
        self._less = asyncio.Event()
        self.abandoned = False

    @classmethod
    def whole(cls, text: str) -> GrowingText:
        """A text that is known to its end."""
        made = cls()
        made._ready.extend(made._splitter.push(text))
        made.end()
        return made

    async def push(self, piece: str) -> bool:
        """More text; waits while `SENTENCES_WAITING` sentences wait. False: nobody reads it any more. Cancelling loses nothing."""
        if self.abandoned or self._ended:
            return False
        self._ready.extend(self._splitter.push(piece))
        self._more.set()
        while len(self._ready) > SENTENCES_WAITING and not self.abandoned:
            self._less.clear()
            await self._less.wait()
        return not self.abandoned

    def end(self) -> None:
        """No more text. Safe to call twice."""
        if not self._ended:
            self._ready.extend(self._splitter.flush())
            self._ended = True
            self._more.set()

    def abandon(self) -> None:
        """Nobody will read the rest."""
        self.abandoned = True
        self._ready.clear()
        self._less.set()

    async def next(self) -> str | None:
        """The next sentence, None after the last. Cancelling loses nothing."""
        while not self._ready:
            if self._ended:
                return None
            self._more.clear()
            try:
                async with asyncio.timeout(RIPE_S if self._splitter.ripe else None):
                    await self._more.wait()
            except TimeoutError:
                self._ready.extend(self._splitter.flush())
        sentence = self._ready.popleft()
        self._less.set()
        return sentence
