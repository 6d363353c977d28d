"""The pronunciation lexicon: words that a voice would get wrong, respelled or given as phonemes."""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from musetalk_agent.protocol.http import Strict

FILE_ENTRIES = 20_000
FILE_BYTES = 8 << 20
WORD_CHARACTERS = 64
SAID_CHARACTERS = 128
_IPA_MARKS = frozenset("ˈˌːˑ.‿|' -")


class LexiconEntry(Strict):
    """`word` is said as `say` is read, or as the phonemes `ipa`; with both, `ipa` where the voice takes phonemes.

    `language` (BCP 47) limits it to voices of that language: `en` to all of English, `en-GB` to British voices. A word in capitals
    alone (`IT`) is found in capitals alone, any other in any case.
    """

    word: str = Field(min_length=1, max_length=WORD_CHARACTERS)
    say: str | None = Field(default=None, min_length=1, max_length=SAID_CHARACTERS)
    ipa: str | None = Field(default=None, min_length=1, max_length=SAID_CHARACTERS)
    language: str | None = Field(default=None, min_length=2, max_length=16)

    @field_validator("word", "say")
    @classmethod
    def _speakable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = " ".join(unicodedata.normalize("NFC", value).split())
        if not any(c.isalnum() for c in value) or any(c in "[]<>" or unicodedata.category(c)[0] == "C" for c in value):
            raise ValueError("it needs a letter or digit, and may have no brackets or control characters")
        return value

    @field_validator("ipa")
    @classmethod
    def _phonemes(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = unicodedata.normalize("NFD", value.strip().strip("/"))
        kinds = {c: unicodedata.category(c) for c in value}
        if not any(kind in ("Ll", "Lo", "Lu") for kind in kinds.values()) or any(
            kind[0] != "L" and kind not in ("Mn", "Sk") and c not in _IPA_MARKS for c, kind in kinds.items()
        ):
            raise ValueError("give phonemes of the International Phonetic Alphabet, such as ˈnʌmbə")
        return value

    @model_validator(mode="after")
    def _said(self) -> LexiconEntry:
        if self.say is None and self.ipa is None:
            raise ValueError("give say, ipa, or both")
        return self


class Said(NamedTuple):
    """Characters `start` to `end` of a text are said as `ipa` where the voice takes phonemes, or as `say`; either may be empty."""

    start: int
    end: int
    say: str
    ipa: str


class Lexicon:
    """Entries, ready to be found in texts. Of two for the same word and language the first counts."""

    def __init__(self, entries: Iterable[LexiconEntry] = ()) -> None:
        self._by_run: defaultdict[str, list[tuple[int, LexiconEntry]]] = defaultdict(list)
        self._unspaced: list[LexiconEntry] = []
        for entry in entries:
            start, end = next(_runs(entry.word))
            if _unspaced(entry.word[0]) or _unspaced(entry.word[-1]):
                self._unspaced.append(entry)
            else:
                self._by_run[entry.word[start:end].lower()].append((start, entry))

    def candidates(self, text: str, language: str) -> list[tuple[int, int, LexiconEntry]]:
        """Where entries stand in the text, in no order; they may overlap."""
        out: list[tuple[int, int, LexiconEntry]] = []
        for start, end in _runs(text) if self._by_run else ():
            for before, entry in self._by_run.get(text[start:end].lower(), ()):
                begin = start - before
                if begin >= 0 and _stands(entry, text, begin) and _speaks(entry, language):
                    out.append((begin, begin + len(entry.word), entry))
        for entry in self._unspaced:
            at = text.find(entry.word)
            while at >= 0 and _speaks(entry, language):
                out.append((at, at + len(entry.word), entry))
                at = text.find(entry.word, at + len(entry.word))
        return out


def said(text: str, language: str, lexicons: Sequence[Lexicon]) -> tuple[Said, ...]:
    """What of a text (NFC) is said otherwise by a voice of this language; in its order, without overlaps.

    The longest entry counts, of equally long ones that of the first lexicon, and there one that names the language.
    """
    found = [
        (start, start - end, rank, entry.language is None, place, end, entry)
        for rank, lexicon in enumerate(lexicons)
        for place, (start, end, entry) in enumerate(lexicon.candidates(text, language))
    ]
    out: list[Said] = []
    at = 0
    for start, _, _, _, _, end, entry in sorted(found, key=lambda each: each[:5]):
        if start >= at:
            out.append(Said(start, end, entry.say or "", entry.ipa or ""))
            at = end
    return tuple(out)


def respelled(text: str, language: str, lexicons: Sequence[Lexicon]) -> str:
    """The text for a voice that takes no phonemes."""
    out, at = [], 0
    for each in said(text, language, lexicons):
        if each.say:
            out += [text[at : each.start], each.say]
            at = each.end
    return "".join([*out, text[at:]])


_entries: TypeAdapter[list[LexiconEntry]] = TypeAdapter(list[LexiconEntry])


def load(path: Path) -> Lexicon:
    """The lexicon in a JSON file: a list of entries. Raises ValueError with a sentence about what is wrong, and where."""
    try:
        if path.stat().st_size > FILE_BYTES:
            raise ValueError(f"{path}: it has more than {FILE_BYTES} bytes")
        entries = _entries.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: entry {place}: {first['msg']}") from None
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: it is no JSON: {error}") from None
    if len(entries) > FILE_ENTRIES:
        raise ValueError(f"{path}: it has {len(entries)} entries, at most {FILE_ENTRIES} are taken")
    return Lexicon(entries)


def _stands(entry: LexiconEntry, text: str, at: int) -> bool:
    """Whether the entry's word stands at `at`, and does not go on to either side."""
    word, end = entry.word, at + len(entry.word)
    there = text[at:end]
    capitals = word.isupper() and len(word) > 1
    if there != word if capitals else there.lower() != word.lower():
        return False
    before, after = text[at - 1 : at], text[end : end + 1]
    return not (before and _in_word(before) and _in_word(word[0])) and not (
        after and _in_word(after) and (_in_word(word[-1]) or unicodedata.combining(after))
    )


def _speaks(entry: LexiconEntry, language: str) -> bool:
    if entry.language is None:
        return True
    wanted, spoken = entry.language.lower(), language.lower()
    return spoken == wanted or spoken.startswith(wanted + "-") or spoken == "mul"


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """Letters and digits that stand together, with their marks."""
    start: int | None = None
    for at, c in enumerate(text):
        if _in_word(c):
            start = at if start is None else start
        elif start is not None:
            yield start, at
            start = None
    if start is not None:
        yield start, len(text)


def _in_word(c: str) -> bool:
    return c.isalnum() or unicodedata.category(c)[0] == "M"


def _unspaced(c: str) -> bool:
    """A letter of a script that puts no spaces between words."""
    return (
        unicodedata.east_asian_width(c) in "WF"
        or "\u0e00" <= c <= "\u0eff"
        or "\u1000" <= c <= "\u109f"
        or "\u1780" <= c <= "\u17ff"
    )
