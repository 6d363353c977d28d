from __future__ import annotations

import asyncio
import random

import pytest

from orchestrator.tts.segmentation import SENTENCES_WAITING, GrowingText, Splitter
from tests.waiting import NEVER_S, turns


def split(*pieces: str) -> list[str]:
    splitter = Splitter()
    out = [sentence for piece in pieces for sentence in splitter.push(piece)]
    return out + splitter.flush()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Hello there. How are you?", ["Hello there.", "How are you?"]),
        ("Dr. Smith has 3.14 of it. Good!", ["Dr. Smith has 3.14 of it.", "Good!"]),
        ('"Really?" she asked. Yes.', ['"Really?" she asked.', "Yes."]),
        ("One thing\nand another\n\n- a list", ["One thing and another", "a list"]),
        ("你好。今天天气很好！再见", ["你好。", "今天天气很好！", "再见"]),
        ("**Bold.** And <b>more</b> 😀.", ["Bold.", "And more."]),
        ("... 😀 —", []),
        ("", []),
        ("Ages:\n\n| Ann | 41 |\n|---|---|\n| Bob | 7 |\n---\nDone.", ["Ages:", "Ann, 41", "Bob, 7", "Done."]),
    ],
)
def test_whole_sentences(text: str, sentences: list[str]) -> None:
    assert split(text) == sentences


def test_a_sentence_is_given_out_when_the_next_begins() -> None:
    splitter = Splitter()
    assert splitter.push("It is 3.") == []
    assert splitter.push("5 metres.") == []
    assert splitter.push(" And") == ["It is 3.5 metres."]


def test_only_the_beginning_is_cut_at_a_comma() -> None:
    splitter = Splitter()
    assert splitter.push("Well, as you know, ") == ["Well, as you know,"]
    assert splitter.push("this takes some time, as always, and") == []
    assert splitter.flush() == ["this takes some time, as always, and"]


def test_long_sentences_are_cut_where_they_can_be() -> None:
    text = "this goes on and on without a single stop, " * 10
    parts = split("So. ", *text)
    assert len(parts) > 3 and max(map(len, parts)) <= 260
    assert " ".join(parts).split() == ("So. " + text).split()
    assert max(map(len, split("word" * 400))) <= 240


def test_no_word_is_lost_however_the_text_comes() -> None:
    text = "Good morning, dear friends. This is e.g. a test of 2.5 things; one, two, and (three)! Is it? Yes. " * 3
    rng = random.Random(5)
    for _ in range(50):
        cuts = sorted(rng.sample(range(len(text)), 30))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert " ".join(split(*pieces)).split() == text.split()


async def test_a_ripe_sentence_does_not_wait_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tts.segmentation.RIPE_S", 0.0)
    text = GrowingText()
    await text.push("That is all.")
    async with asyncio.timeout(NEVER_S):
        assert await text.next() == "That is all."
    await text.push("An unfinished one")
    waiting = asyncio.create_task(text.next())
    await turns()
    assert not waiting.done()
    text.end()
    assert await waiting == "An unfinished one"
    assert await text.next() is None


async def test_who_writes_too_much_waits_for_the_voice() -> None:
    text = GrowingText()
    writing = asyncio.create_task(text.push("Go. " * (SENTENCES_WAITING + 2)))
    await turns()
    assert not writing.done()
    await text.next()
    await text.next()
    assert await writing
    writing = asyncio.create_task(text.push("Go. " * 10))
    await asyncio.sleep(0)
    text.abandon()
    assert await writing is False
    assert await text.push("more") is False


async def test_cancelling_loses_no_sentence() -> None:
    text = GrowingText()
    waiting = asyncio.create_task(text.next())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await text.push("Still here. Yes.")
    assert await text.next() == "Still here."
