"""Markup, lists and long sentences in a text that is cut while it is written: no word is lost, and no mark is said."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.tts import pauses
from orchestrator.tts.segmentation import SENTENCE_CHARACTERS, GrowingText, Splitter, clean, unclosed


def split(*pieces: str) -> list[str]:
    splitter = Splitter()
    out = [sentence for piece in pieces for sentence in splitter.push(piece)]
    return out + splitter.flush()


def letters(*said: str) -> str:
    return "".join(c for part in said for c in part if c.isalnum())


WORDS = st.sampled_from(
    [
        ("Hello. ", "Hello."),
        ("one, two ", "one, two"),
        ("Yes! ", "Yes!"),
        ('<a title="Hi. There, you">', ""),
        ("<p class='x. Y' id=\"z: a\">", ""),
        ("</a>", ""),
        ("<!-- a note. Not said, at all -->", ""),
        ("[see this. And, that](http://x.y/z)", "see this. And, that"),
        ("![a cat. A dog](http://x.y/a.png)", "a cat. A dog"),
        ("<break time='1.5s'/> ", ""),
    ]
)


@settings(max_examples=150)
@given(st.lists(WORDS, max_size=8), st.lists(st.integers(0, 400), max_size=8))
def test_markup_is_taken_out_whole_however_the_text_comes(atoms: list[tuple[str, str]], cuts: list[int]) -> None:
    text = "".join(f"{written} " for written, _ in atoms)
    said = letters(*(heard for _, heard in atoms))
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert letters(pauses.without(clean(text))) == said
    for cut in (split(text), split(*pieces), split(*text)):
        heard = [pauses.without(sentence) for sentence in cut]
        assert letters(*heard) == said
        assert not any(mark in sentence for sentence in heard for mark in "<>[]=")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("if x<y and y>z then stop", "if x<y and y>z then stop"),
        ("Write to Ann <ann@example.com> today", "Write to Ann <ann@example.com> today"),
        ("I <3 you and 2 < 3 > 1", "I <3 you and 2 < 3 > 1"),
        ('<?xml version="1.0"?><speak>Hi <break time="1.5s"/> you</speak>', "Hi you"),
        ("<!DOCTYPE html><p>Hi</p>", "Hi"),
        ("See <https://example.com/a?b=c> now", "See now"),
        ('<amazon:effect name="whispered">Psst</amazon:effect>', "Psst"),
        ("<details open>More</details><br/><hr />", "More"),
        ("42. That is the answer.", "42. That is the answer."),
        ("10. November 2026 war es.", "10. November 2026 war es."),
        ("1. Milk\n2. Eggs", "Milk\nEggs"),
        ("Buy:\n1. milk\n2. eggs\nDone.", "Buy:\nmilk\neggs Done."),
        ("1) Red\n\nand green", "Red\nand green"),
    ],
)
def test_what_only_looks_like_markup_is_said(text: str, spoken: str) -> None:
    assert clean(text) == spoken


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ('<a title="Hi.', True),
        ("<a href='x' title='Hi, ", True),
        ('<a title="Hi.">', False),
        ('<a title="Hi." ', False),
        ("<!-- a. b", True),
        ("<!-- a --> b.", False),
        ("[a link. And", True),
        ("[a link. And](http://x)", False),
        ("x < y. And", False),
        ("x <y is. And", False),
        ("[" + "a" * 201, False),
        ("", False),
    ],
)
def test_a_text_ends_inside_of_markup_or_not(text: str, open_: bool) -> None:
    assert unclosed(text) is open_


def test_a_numbered_item_is_one_sentence_and_a_number_alone_is_said() -> None:
    assert split("1. Milk\n2. Eggs\n") == ["1. Milk", "2. Eggs"]
    assert split("How much? 42. That is all.") == ["How much?", "42. That is all."]
    assert split("42.") == ["42."]


async def test_a_tag_that_is_half_written_is_not_taken_for_the_end_of_a_sentence() -> None:
    splitter = Splitter()
    assert splitter.push('See <a title="Stop.') == [] and not splitter.ripe
    assert splitter.push('">this</a>.') == [] and splitter.ripe
    assert splitter.flush() == ["See this."]
    splitter.push("That is Dr.")
    assert not splitter.ripe
    splitter.push(" Who.")
    assert splitter.ripe


def test_markup_that_never_ends_holds_up_no_more_than_a_bounded_text() -> None:
    splitter = Splitter()
    said: list[str] = []
    for _ in range(100):
        said += splitter.push("[and so on, he said. Then again ")
        assert len(splitter._buffer) <= SENTENCE_CHARACTERS + 40
    assert letters(*said, *splitter.flush()) == letters("and so on, he said. Then again " * 100)


@pytest.mark.parametrize("word", ["go ", "go, ", "x", "ab. ", "Dr. ", "<a ", "。", "你"])
@pytest.mark.parametrize("ended", [".", ""])
def test_no_sentence_is_longer_than_providers_take(word: str, ended: str) -> None:
    text = word * 3000 + ended
    whole = split(text)
    assert all(len(sentence) <= SENTENCE_CHARACTERS for sentence in whole)
    assert letters(*whole) == letters(text)


def test_a_sentence_up_to_the_bound_stays_whole_and_one_more_letter_cuts_it() -> None:
    sentence = "A" + " a" * (SENTENCE_CHARACTERS // 2 - 2) + "aa."
    assert len(" " + sentence) == SENTENCE_CHARACTERS + 1
    assert len(split("Go. " + sentence + " More.")) > 3
    assert split("Go. " + sentence.replace("aa.", "a.") + " More.") == ["Go.", sentence.replace("aa.", "a."), "More."]


@pytest.mark.parametrize("line", ["ab. ", "Dr. ", ". ", "a", "a, ", "\n", " ", "。", '<a b="', "<!--", "[", "1. "])
def test_a_large_text_is_cut_in_time_that_grows_with_it(line: str) -> None:
    text = line * ((64 << 10) // len(line))
    began = time.process_time()
    said = split(text)
    assert time.process_time() - began < 10  # CPU time; "ab. " took 15 s when each match went over the whole text
    assert letters(*said) == letters(text) or letters(*said) == letters(
        clean(text)
    )  # which takes long for a whole text


async def test_a_whole_text_is_read_to_its_end_and_then_says_so_again_and_again() -> None:
    text = GrowingText.whole("One. Two! Three")
    assert [await text.next() for _ in range(5)] == ["One.", "Two!", "Three", None, None]
    assert await text.push("Four.") is False
    text.end()
    assert await text.next() is None


async def test_what_is_abandoned_is_forgotten_and_takes_no_more() -> None:
    text = GrowingText()
    assert await text.push("One. Two. Three") is True
    text.abandon()
    assert await text.push(" Four.") is False
    text.end()
