"""How English words are pronounced, as the phones of the CMU dictionary (ARPABET without stress).

Words come from the dictionary. What it lacks, names mostly, is read by simple rules, which are good enough to find a word in
its sound.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

_ONES = (
    *("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen").split(),
    *("seventeen eighteen nineteen").split(),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SIGNS = {"%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at"}
_SPELLINGS = """
tion SH AH N; tch CH; sch SH; igh AY; ough OW; eau OW; ch CH; sh SH; th TH; ph F; ck K; qu K W; ng NG; wh W; gh G; kn N; wr R
ee IY; ea IY; ie IY; oo UW; ou AW; ow OW; ai EY; ay EY; ey IY; oa OW; oi OY; oy OY; au AO; aw AO; ue UW; ui UW
er ER; ir ER; ur ER; ar AA R; a AE; b B; c K; d D; e EH; f F; g G; h HH; i IH; j JH; k K; l L; m M; n N; o AA; p P; q K
r R; s S; t T; u AH; v V; w W; x K S; y IY; z Z
"""
_RULES = {letters: sounds for letters, *sounds in (rule.split() for rule in re.split("[;\n]", _SPELLINGS.strip()))}
_LAST = {"a": ["AH"], "i": ["IY"], "o": ["OW"]}
"""Of vowels that end a word."""
_LONGEST_RULE = max(map(len, _RULES))


def words_of(token: str) -> list[str]:
    """The words that a token of a text is read as, in small letters: none for a sign that is silent.

    "Well-known," is `["well", "known"]`, "17" is `["seventeen"]`.
    """
    plain = unicodedata.normalize("NFKD", token.replace("’", "'").lower())
    found: list[str] = []
    for part in re.findall(r"[a-z]+(?:'[a-z]+)*|\d[\d,]*|[%&+=@]", plain.encode("ascii", "ignore").decode()):
        if part in _SIGNS:
            found.append(_SIGNS[part])
        elif part[0].isdigit():
            found += _number(part.replace(",", ""))
        else:
            found.append(part)
    return found


def _number(digits: str) -> list[str]:
    """A number's words: of four digits 1100 … 1999 and 2010 … 2099 as a year, of more than six digit by digit."""
    value = int(digits)
    if len(digits) > 6 or (digits[0] == "0" and len(digits) > 1):
        return [_ONES[int(digit)] for digit in digits]
    if len(digits) == 4 and (11 <= value // 100 <= 19 or 2010 <= value <= 2099) and value % 100:
        century, rest = divmod(value, 100)
        return [*_below_hundred(century), *(["oh"] if rest < 10 else []), *_below_hundred(rest)]
    words = []
    if value >= 1000:
        words = [*_number(str(value // 1000)), "thousand"]
        value %= 1000
    if value >= 100:
        words += [_ONES[value // 100], "hundred"]
        value %= 100
    return words + (_below_hundred(value) if value or not words else [])


def _below_hundred(value: int) -> list[str]:
    if value < len(_ONES):
        return [_ONES[value]]
    return [_TENS[value // 10], *([_ONES[value % 10]] if value % 10 else [])]


def read_dictionary(path: Path, wanted: Iterable[str]) -> dict[str, list[str]]:
    """The first pronunciation of each wanted word that a dictionary in CMU's format has. Raises OSError."""
    missing = set(wanted)
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            word, _, phones = line.partition(" ")
            if word in missing:
                found.setdefault(word, phones.split())
    return found


def guessed(word: str) -> list[str]:
    """Phones of a word `[a-z']+` by rules of spelling: the longest rule first, a double letter once, a last "e" silent."""
    letters = word.replace("'", "")
    if len(letters) > 3 and letters[-1] == "e" and letters[-2] not in "aeiouy":
        letters = letters[:-1]
    phones: list[str] = []
    at = 0
    while at < len(letters):
        if at and letters[at] == letters[at - 1] and letters[at] not in "aeiou":
            at += 1
            continue
        size = next(size for size in range(_LONGEST_RULE, 0, -1) if letters[at : at + size] in _RULES)
        at += size
        rule = letters[at - size : at]
        phones += _RULES[rule] if at < len(letters) else _LAST.get(rule, _RULES[rule])
    return phones
