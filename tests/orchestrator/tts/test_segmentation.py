from __future__ import annotations

import time

import pytest

from orchestrator.tts.segmentation import (
    CLAUSE_PAUSE_MS,
    FIRST_PART_CHARACTERS,
    PARAGRAPH_PAUSE_MS,
    PART_CHARACTERS,
    SENTENCE_PAUSE_MS,
    UNCUT_CHARACTERS,
    clean,
    parts,
)


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        ("Hello **world** 😀! See [this](http://x.y/z) <b>now</b>.", "Hello world! See this now."),
        ("one\x00two\x1b[31m", "one two [31m"),
        ("family: 👨‍👩‍👧‍👦 and flag 🇩🇪 and thumb 👍🏽.", "family: and flag and thumb."),
        ("1️⃣ first", "1 first"),
        ("`code` and snake_case stay, 2 * 3 < 7 too", "code and snake_case stay, 2 * 3 < 7 too"),
        ("# Title\ntext\n\n- one\n- two", "Title text\none\ntwo"),
        ("[[abc]]", "abc"),
        ("می‌خواهم", "می‌خواهم"),
        ("20 °C for 5 €", "20 °C for 5 €"),
        ("a\ud800b", "a b"),
        ("line\r\nbreak", "line break"),
        ("| Name | Age |\n|------|:---:|\n| Ann | 41 |\n\nThat is all.", "Name, Age\nAnn, 41\nThat is all."),
        ("One.\n\n---\n\nTwo.\n***\nThree\n=====\nFour", "One.\nTwo.\nThree\nFour"),
        ("ham | eggs", "ham, eggs"),
        ("| | only |", "only"),
        ("Tom &amp; Jerry&nbsp;&#33; AT&T &nonsense;", "Tom & Jerry! AT&T &nonsense;"),
        ("- [ ] to do\n- [x] done[^1]\n\n[^1]: a note", "to do\ndone\na note"),
        ("- - -\nnext", "next"),
        ("it goes up - 5 - and down", "it goes up - 5 - and down"),
        ("42. ", "42."),
        ("1. milk\n2. eggs", "milk\neggs"),
    ],
)
def test_clean_takes_out_what_no_voice_pronounces(raw: str, spoken: str) -> None:
    assert clean(raw) == spoken


@pytest.mark.parametrize("raw", ["", "   \n", "...", "😀😀", "\x00\x01", "<br/>", "**", "—", "‍"])
def test_nothing_to_say_is_empty(raw: str) -> None:
    assert clean(raw) == ""
    assert parts(clean(raw)) == []


@pytest.mark.parametrize("line", ["\n \n", "\n", "> ", "| ", "&", "[^", "]["])
def test_cleaning_takes_no_longer_than_the_text(line: str) -> None:
    text = line * (20_000 // len(line))
    began = time.process_time()
    clean(text + "a")
    assert (
        time.process_time() - began < 10
    )  # CPU time; a pattern that goes over the rest again at each line takes half a minute


def test_sentences_end_where_a_reader_would_end_them() -> None:
    text = 'Dr. Smith paid 3.14 dollars. He left. "Really?" she asked. J. R. Tolkien wrote... and so on. Ok!'
    assert [p.text for p in parts(text)] == [
        "Dr. Smith paid 3.14 dollars.",
        "He left.",
        '"Really?" she asked.',
        "J. R. Tolkien wrote... and so on.",
        "Ok!",
    ]
    assert [p.text for p in parts("你好。世界！")] == ["你好。", "世界！"]
    assert [p.text for p in parts("क्या हाल है। ठीक है।")] == ["क्या हाल है।", "ठीक है।"]


def test_pauses_tell_clauses_sentences_and_paragraphs_apart_and_none_comes_last() -> None:
    spoken = parts("After all of that had happened, nobody said anything. Then silence.\nThe end.")
    assert [p.pause_ms for p in spoken] == [CLAUSE_PAUSE_MS, SENTENCE_PAUSE_MS, PARAGRAPH_PAUSE_MS, 0]


def test_the_first_part_is_short_and_nothing_is_lost() -> None:
    text = "Good morning everybody, and welcome to this little show of ours, which we made for you. " + "word " * 300
    spoken = parts(clean(text))
    assert spoken[0].text == "Good morning everybody,"
    assert len(spoken[0].text) <= FIRST_PART_CHARACTERS
    assert all(len(p.text) <= PART_CHARACTERS for p in spoken)
    assert " ".join(p.text for p in spoken) == clean(text)


def test_a_first_sentence_without_commas_is_cut_only_when_long() -> None:
    whole = "A short sentence without any comma stays in one piece."
    assert FIRST_PART_CHARACTERS < len(whole) <= UNCUT_CHARACTERS
    assert [p.text for p in parts(whole)] == [whole]
    long = "This sentence has no comma at all but it is long enough to be cut because nobody wants to wait"
    assert parts(long)[0].text == "This sentence has no comma at all"


def test_text_without_any_space_is_still_cut() -> None:
    spoken = parts("x" * 1000)
    assert "".join(p.text for p in spoken) == "x" * 1000
    assert max(len(p.text) for p in spoken) <= PART_CHARACTERS


def test_digits_and_chinese_count_for_what_they_last() -> None:
    assert max(len(p.text) for p in parts("0" * 400)) == PART_CHARACTERS // 5
    assert max(len(p.text) for p in parts("你" * 400)) == PART_CHARACTERS // 3
    assert "".join(p.text for p in parts("0" * 400)) == "0" * 400
    assert [p.text for p in parts("It was 3,200 dollars in 1999.")] == ["It was 3,200 dollars in 1999."]
