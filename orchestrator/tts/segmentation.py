"""Splits text, whole or still growing, into parts that a voice can speak, and places words in the audio.

Only what no voice can pronounce is removed (markup, control characters, emoji). The voice reads numbers and abbreviations.
A part is one call of the synthesizer.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections import deque
from dataclasses import dataclass
from html import unescape

from musetalk_agent.protocol.messages import CaptionWord
from orchestrator.tts import pauses

PART_CHARACTERS = 120
"""Longest part, in letters: about 7 s of speech, 0.3 s of synthesis, the longest that other utterances wait for their turn."""
FIRST_PART_CHARACTERS = 40
"""Longest first part where the text has a place to cut it: about 2.5 s of speech, 0.1 s of synthesis."""
UNCUT_CHARACTERS = 64
"""A first sentence without any comma is left whole up to here: cut in mid-clause it would sound broken."""
_SHORTEST_CLAUSE = 8

SENTENCE_PAUSE_MS = 220
CLAUSE_PAUSE_MS = 110
PARAGRAPH_PAUSE_MS = 400

_TAG = re.compile(
    r"<!--.*?-->|<\?[^<>]{0,500}\?>|<![A-Za-z][^<>]{0,500}>|<[A-Za-z][A-Za-z0-9+.-]{1,30}:[^\s<>]{0,500}>"
    r"|</?[A-Za-z][\w:-]{0,40}(?:\s[^<>=]{0,500}=[^<>]{0,500}|\s+(?:open|hidden|controls|checked|disabled))?\s*/?>",
    re.DOTALL,
)
"""Comments, declarations, addresses in angle brackets, and tags: what follows a tag's name has an `=` or is a known word, so that
"x <y and y> z" is not one."""
_UNCLOSED = re.compile(
    r"<!--(?:(?!-->).)*$|<[A-Za-z][\w:-]{0,40}\s[^<>]{0,500}?=\s*(?:\"[^\"<>]*|'[^'<>]*)$|\[[^\[\]]{0,200}$", re.DOTALL
)
"""A comment, the quoted value of a tag's attribute, or the words of a link that go on."""
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)")
_FENCE = re.compile(r"`+|~~+|(?<!\w)[*_]+(?=\S)|(?<=\S)[*_]+(?!\w)|^[ \t]*(?:#+|>+)[ \t]+", re.MULTILINE)
_BULLET = re.compile(r"(?:^|\n)[ \t]*(?:[-*•‣]|\d{1,3}\)(?=[ \t]+\S))[ \t]+")
_NUMBER = r"^[ \t]*\d{1,3}\.(?=[ \t]+\S)[ \t]+"
_NUMBERED = re.compile(_NUMBER, re.MULTILINE)
"""Of a list when there are two of them; one alone is an answer ("42. That is all."), or a date."""
_LOOSE_MARK = re.compile(r"\s+(?=[.,!?;:…](?:\s|$))")
_CHECKBOX = re.compile(r"^([ \t]{0,40}(?:[-*+•‣]|\d{1,3}[.)])[ \t])\[[ xX]\][ \t]", re.MULTILINE)
_NOTE = re.compile(r"\[\^[^\]\s]{1,40}\]:?|(?<=\])\[[^\[\]\n]{0,80}\]")
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_DIVIDER = frozenset("|:=-*_~+ \t")
_RULES = frozenset("-=*_~")
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
# Sounds that symbols of the emoji category have names for in every voice; all the others are pictures.
_SPOKEN_SYMBOLS = frozenset("°©®™№")
_JOINERS = frozenset("\u200c\u200d")

_END = r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？؟۔।]+[”’」』）]*"
_SENTENCE = re.compile(_END)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|approx|No|Nr|bzw|z\.B|ca|Mme|Sra?)\.$"
)
_ABBREVIATION_CHARACTERS = 16
"""More than the longest abbreviation has."""
_CLAUSE = re.compile(r"[,;:][\"'”’»)]*(?=\s)|\s[-–—]+(?=\s)|—|[，、；：،]")
_CONJUNCTION = re.compile(r"\s(?=(?:and|but|because|which|that|when|while|if|so|or|where|und|et|y|que|weil|dass)\s)")


@dataclass(frozen=True, slots=True)
class Part:
    """One call of the synthesizer, and the silence after it (ms; 0 after the last part and inside a clause).

    `pause_ms` follows the speed. `before_ms` and `silence_ms`, before and after it, are what the text itself asks for.
    """

    text: str
    pause_ms: int
    before_ms: int = 0
    silence_ms: int = 0


def clean(text: str) -> str:
    """The speakable text; empty when nothing can be pronounced. Paragraphs stay apart by one newline."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n")
    text = _ENTITY.sub(lambda entity: unescape(entity[0]), text)
    text = "\n".join(_line(line) for line in _NOTE.sub("", _CHECKBOX.sub(r"\1", text)).split("\n"))
    text = _LINK.sub(r"\1", _TAG.sub(" ", text))
    text = _PARAGRAPH.sub("\n\n", _FENCE.sub("", text))
    if len(_NUMBERED.findall(text)) > 1:
        text = _NUMBERED.sub("\n\n", text)
    text = _BULLET.sub("\n\n", text)
    # piper reads [[…]] as raw phonemes; no caller means that here.
    text = text.replace("[[", " ").replace("]]", " ")
    kept = _speakable(text)
    paragraphs = (_LOOSE_MARK.sub("", " ".join(part.split())) for part in kept.split("\n\n"))
    cleaned = "\n".join(part for part in paragraphs if part)
    return cleaned if any(unicodedata.category(c)[0] in "LN" for c in cleaned) else ""


def parts(
    cleaned: str, *, early: bool = True, sentence_ms: int = SENTENCE_PAUSE_MS, paragraph_ms: int = PARAGRAPH_PAUSE_MS
) -> list[Part]:
    """Cuts cleaned text into sentences, long ones into clauses, and where it is `early` the first, so that sound starts early."""
    out: list[Part] = []
    for paragraph in cleaned.split("\n"):
        for sentence in _sentences(paragraph):
            out += _clauses(sentence, first=early and not out, sentence_ms=sentence_ms)
        if out:
            out[-1] = Part(out[-1].text, paragraph_ms)
    if out:
        out[-1] = Part(out[-1].text, 0)
    return out


def abbreviated(text: str) -> bool:
    """Whether the full stop at its end is that of an abbreviation or an initial."""
    return _ABBREVIATION.search(text[-_ABBREVIATION_CHARACTERS:]) is not None


def unclosed(text: str) -> bool:
    """Whether it ends inside a comment, an attribute of a tag, or the words of a link, which are cleaned only as a whole."""
    return ("<" in text or "[" in text) and _UNCLOSED.search(text) is not None


def _line(line: str) -> str:
    """A line without what is drawn rather than said: the cells of a table's row are listed, dividers part paragraphs."""
    bare = line.strip()
    if not set(bare) - _DIVIDER and sum(c in _RULES for c in bare) >= 3:
        return "\n"
    if "|" not in bare:
        return line
    listed = ", ".join(cell for cell in (cell.strip() for cell in bare.split("|")) if cell)
    return f"\n{listed}\n" if bare[0] == bare[-1] == "|" else listed


def _speakable(text: str) -> str:
    out: list[str] = []
    for i, c in enumerate(text):
        if c == "\n" or (c in _JOINERS and out and out[-1].isalpha() and text[i + 1 : i + 2].isalpha()):
            out.append(c)
            continue
        category = unicodedata.category(c)
        if category[0] == "C" or category in ("Me", "Sk") or (category == "So" and c not in _SPOKEN_SYMBOLS):
            out.append(" ")
        elif not 0xFE00 <= ord(c) <= 0xFE0F:
            out.append(c)
    return "".join(out)


def _sentences(paragraph: str) -> list[str]:
    out: list[str] = []
    begin = 0
    for match in _SENTENCE.finditer(paragraph):
        rest = paragraph[match.end() :].lstrip()
        if abbreviated(paragraph[begin : match.end()]) or rest[:1].islower():
            continue
        out.append(paragraph[begin : match.end()])
        begin = match.end()
    out.append(paragraph[begin:])
    # A piece without a letter or digit ("...", a lone quote) says nothing by itself.
    return [piece.strip() for piece in out if any(c.isalnum() for c in piece)]


def _clauses(sentence: str, *, first: bool, sentence_ms: int) -> list[Part]:
    out: list[Part] = []
    while True:
        early = first and not out
        limit = _reach(sentence, FIRST_PART_CHARACTERS if early else PART_CHARACTERS)
        if len(sentence) <= limit:
            break
        cut, pause = _cut(sentence, limit, whole=_reach(sentence, UNCUT_CHARACTERS) if early else limit)
        if cut >= len(sentence):
            break
        out.append(Part(sentence[:cut].strip(), pause))
        sentence = sentence[cut:].strip()
    return [*out, Part(sentence, sentence_ms)]


def _cut(sentence: str, limit: int, *, whole: int) -> tuple[int, int]:
    """Where to end the part that begins `sentence`, and the pause there: the last clause within the limit, or next best."""
    clauses = [m.end() for m in _CLAUSE.finditer(sentence) if m.end() >= _SHORTEST_CLAUSE]
    within = [end for end in clauses if end <= limit]
    if within:
        return within[-1], CLAUSE_PAUSE_MS
    if clauses and clauses[0] <= whole:
        return clauses[0], CLAUSE_PAUSE_MS
    if len(sentence) <= whole:
        return len(sentence), 0
    words = [m.end() for m in _CONJUNCTION.finditer(sentence, _SHORTEST_CLAUSE, limit)]
    if not words:
        words = [i for i, c in enumerate(sentence[:limit]) if c == " " and i >= _SHORTEST_CLAUSE]
    return (words[-1] if words else limit), 0


def _reach(sentence: str, characters: int) -> int:
    """How many characters from the start last as long as `characters` letters: a digit or symbol is a word or two, a Chinese
    character a syllable."""
    left = characters
    for i, c in enumerate(sentence):
        if unicodedata.category(c)[0] in "NS" or c in "%#&@*/":
            left -= 5
        else:
            left -= 3 if unicodedata.east_asian_width(c) in "WF" else 1
        if left < 0:
            return max(i, 1)
    return len(sentence)


SENTENCES_WAITING = 64
"""Sentences that wait for the voice; who writes more waits with them."""
RIPE_S = 0.08
"""A sentence that ends where the text ends so far is taken after this long: what comes may belong to it ("3." and "14")."""
SENTENCE_CHARACTERS = 8 * PART_CHARACTERS
"""Characters of a sentence that is given out whole; providers refuse some thousands at once, and nothing is heard meanwhile."""
_SHORTEST_CLAUSE_READ = 12
"""Characters; a shorter beginning ("Well,") waits for what follows."""
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s)|[。！？؟۔।]+[”’」』）]*|\n+")
_RIPE = re.compile(r"[.!?…]+[\"'”’»)\]*_]*$")
_FOLLOWING = re.compile(r"\s*(\S?)")
_LIST_NUMBER = re.compile(r"\s*\d{1,3}\.")
"""The full stop of a number at the beginning ends no sentence: "1. Milk", "42. That is all."."""


class Splitter:
    """Cuts a growing text: whole sentences, a clause where nothing was cut yet, and long sentences where they can bear it.

    What comes out is clean (see `clean`) but for the marks of pauses (see `pauses.mark`), and never empty.
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
        if found is None or unclosed(self._buffer):
            return False
        return not abbreviated(self._buffer[: found.end()])

    def flush(self) -> list[str]:
        """What is left."""
        taken, self._buffer = self._buffer, ""
        return self._cleaned(taken)

    def _cleaned(self, taken: str) -> list[str]:
        out: list[str] = []
        for piece, ms in pauses.split(taken):
            cleaned = " ".join(clean(piece).split())
            self._first = self._first and not cleaned
            out += [cleaned] if cleaned else []
            out += [pauses.mark(ms)] if ms else []
        return [" ".join(out)] if out else []

    @staticmethod
    def _sentence(text: str, begin: int) -> int | None:
        """Where the sentence that begins at `begin` ends, if that is known and not too far."""
        for match in _SENTENCE_END.finditer(text, begin, begin + SENTENCE_CHARACTERS + 1):
            following = _FOLLOWING.match(text, match.end())
            assert following is not None
            before = text[begin : match.end()]
            if following[1].islower() or abbreviated(before) or _LIST_NUMBER.fullmatch(before):
                continue
            if not unclosed(before):
                return match.end()
        return None

    def _clause(self, text: str, begin: int) -> int | None:
        """Where a sentence that does not end yet, or only far away, is cut."""
        size = len(text) - begin
        long = size > PART_CHARACTERS
        if not (self._first or long):
            return None
        within = begin + 2 * PART_CHARACTERS
        clauses = [
            m.end()
            for m in _CLAUSE.finditer(text, begin, within + 1)
            if m.end() >= begin + _SHORTEST_CLAUSE_READ and not unclosed(text[begin : m.end()])
        ]
        if clauses:
            return clauses[-1] if long else clauses[0]
        if size <= 2 * PART_CHARACTERS or (size <= SENTENCE_CHARACTERS and unclosed(text[begin:])):
            return None
        space = text.rfind(" ", begin + 1, within)
        return pauses.spared(text, begin, space if space > begin else within)


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
        """More text; waits while `SENTENCES_WAITING` sentences wait. False: it is not read any more. Cancelling loses nothing."""
        if self.abandoned or self._ended:
            return False
        self._ready.extend(self._splitter.push(piece))
        self._more.set()
        while len(self._ready) > SENTENCES_WAITING and not self.abandoned:
            self._less.clear()
            await self._less.wait()
        return not self.abandoned

    def put_back(self, sentence: str) -> None:
        """The sentence that `next` gave is the next one again."""
        self._ready.appendleft(sentence)

    def end(self) -> None:
        """No more text. Safe to call twice."""
        if not self._ended:
            self._ready.extend(self._splitter.flush())
            self._ended = True
            self._more.set()

    def abandon(self) -> None:
        """The rest will not be read."""
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


_WORD = re.compile(r"\s*\S+\s*")
_CLAUSE_MARKS = "，、；：。！？,;:.!?"
WORD_CHARACTERS = 40
"""A longer piece is cut, behind a mark where there is one: scripts without spaces have no words to go by."""


def words(text: str) -> list[str]:
    """The text in pieces for viewers to read: words with the space after them. Put together they are the text."""
    out: list[str] = []
    for word in _WORD.findall(text):
        while len(word.rstrip()) > WORD_CHARACTERS:
            cut = max(word.rfind(mark, 0, WORD_CHARACTERS) for mark in _CLAUSE_MARKS) + 1 or WORD_CHARACTERS
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
