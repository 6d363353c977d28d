"""Text cut into sentences and parts, for any text however it comes: no word is lost, doubled or moved, and none is too long."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.tts import segmentation as texts
from orchestrator.tts.segmentation import SENTENCES_WAITING, GrowingText, Splitter
from tests.waiting import NEVER_S

_WORDS = st.sampled_from(
    ["Yes", "no", "Dr", "e.g", "at 3", "pi 14", "well", "Ünder", "你好", "x" * 30, "a", "B", "z.B", "etc", "Mr", "No"]
)
_MARKS = st.sampled_from(
    [" ", ". ", ", ", "! ", "? ", "; ", ": ", ".", ",", "…", " – ", "\n", "\n\n", '" ', ") ", "。", "，"]
)
_written = st.lists(st.tuples(_WORDS, _MARKS), max_size=60).map(lambda pairs: "".join(w + m for w, m in pairs))


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def spoken(parts: list[str]) -> str:
    """What is said, without the spaces that cuts make or take."""
    return "".join("".join(parts).split())


def split(*written: str) -> list[str]:
    splitter = Splitter()
    out = [sentence for piece in written for sentence in splitter.push(piece)]
    return out + splitter.flush()


@settings(max_examples=400)
@given(text=_written, cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_how_a_text_comes_changes_nothing_of_what_is_said(text: str, cuts: list[int]) -> None:
    whole, cut = split(text), split(*pieces(text, cuts))
    letters = [c for c in text if c.isalnum()]
    assert [c for c in spoken(cut) if c.isalnum()] == [c for c in spoken(whole) if c.isalnum()] == letters
    for sentence in [*whole, *cut]:
        assert sentence == " ".join(sentence.split()) and any(c.isalnum() for c in sentence)
        assert len(sentence) <= 2 * texts.PART_CHARACTERS + max(map(len, text.split()), default=0)


@settings(max_examples=400)
@given(text=_written)
def test_parts_say_every_letter_once_and_are_of_a_length_that_does_not_hold_up_others(text: str) -> None:
    parts = texts.parts(texts.clean(text))
    said = [c for c in "".join(part.text for part in parts) if c.isalnum()]
    assert said == [c for c in text if c.isalnum()]
    assert all(part.text == part.text.strip() and part.text for part in parts)
    assert all(len(part.text) <= 2 * texts.PART_CHARACTERS for part in parts)
    assert not parts or parts[-1].pause_ms == 0


@settings(max_examples=300)
@given(text=st.text(max_size=300))
def test_any_text_is_cleaned_to_what_stays_clean(text: str) -> None:
    clean = texts.clean(text)
    assert not any(ord(c) < 32 and c != "\n" for c in clean)
    assert clean == "" or any(c.isalnum() or c.isnumeric() or c.isalpha() for c in clean)
    for part in texts.parts(clean):
        assert part.text and part.pause_ms >= 0


@settings(max_examples=100, deadline=None)
@given(text=_written, cuts=st.lists(st.integers(0, 10_000), max_size=10), leaves_after=st.none() | st.integers(0, 5))
def test_a_writer_and_a_reader_that_hang_on_each_other_both_come_to_an_end(
    text: str, cuts: list[int], leaves_after: int | None
) -> None:
    async def played() -> None:
        growing, read = GrowingText(), list[str]()

        async def write() -> None:
            for piece in pieces(text * 3, cuts):
                if not await growing.push(piece):
                    return
                assert len(growing._ready) <= SENTENCES_WAITING
            growing.end()

        async def reads() -> None:
            while (sentence := await growing.next()) is not None:
                read.append(sentence)
                if leaves_after is not None and len(read) > leaves_after:
                    growing.abandon()
                    return

        async with asyncio.timeout(NEVER_S):
            await asyncio.gather(write(), reads())
        if leaves_after is None:
            assert [c for c in spoken(read) if c.isalnum()] == [c for c in text * 3 if c.isalnum()]

    asyncio.run(played())
