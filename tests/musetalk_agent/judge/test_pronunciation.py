"""How words are read: numbers, signs, and words that no dictionary has."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.judge.pronunciation import guessed, read_dictionary, words_of

PHONES = set(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("Well-known,", "well known"),
        ("Don’t!", "don't"),
        ("“Zoë’s”", "zoe's"),
        ("0", "zero"),
        ("17", "seventeen"),
        ("40", "forty"),
        ("250", "two hundred fifty"),
        ("1,999", "nineteen ninety nine"),
        ("1905", "nineteen oh five"),
        ("2005", "two thousand five"),
        ("2026", "twenty twenty six"),
        ("1900", "one thousand nine hundred"),
        ("17,250", "seventeen thousand two hundred fifty"),
        ("007", "zero zero seven"),
        ("50%", "fifty percent"),
        ("&", "and"),
        ("—", ""),
        ("猫", ""),
    ],
)
def test_a_token_is_read_as_words(token: str, words: str) -> None:
    assert words_of(token) == words.split()


@given(st.integers(0, 10**8))
def test_every_number_is_read_in_words(value: int) -> None:
    assert words_of(str(value)) and all(word.isalpha() for word in words_of(str(value)))


@given(st.text(string.ascii_lowercase + "'", min_size=1, max_size=20).filter(lambda word: word.strip("'")))
def test_every_word_has_phones_of_the_dictionary(word: str) -> None:
    assert guessed(word) and set(guessed(word)) <= PHONES


def test_names_are_read_by_their_spelling() -> None:
    assert guessed("livekit") == ["L", "IH", "V", "EH", "K", "IH", "T"]
    assert guessed("phonnie") == ["F", "AA", "N", "IY"]
    assert guessed("zumbrota") == ["Z", "AH", "M", "B", "R", "AA", "T", "AH"]
    assert guessed("blake") == ["B", "L", "AE", "K"]


def test_the_first_pronunciation_is_taken(tmp_path: Path) -> None:
    (tmp_path / "dict").write_text("a AH\na(2) EY\nab AE B\nabc EY B IY S IY\n")
    assert read_dictionary(tmp_path / "dict", ["a", "abc", "none"]) == {
        "a": ["AH"],
        "abc": ["EY", "B", "IY", "S", "IY"],
    }
