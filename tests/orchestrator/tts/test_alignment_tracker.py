from __future__ import annotations

import numpy as np
import pytest

from orchestrator.tts.elevenlabs import AlignmentTracker, Letter

RATE = 1000  # a sample is a millisecond


def sound(text: str) -> tuple[bytes, list[Letter]]:
    """Each character as ten samples of its code point."""
    pcm = np.repeat([ord(c) for c in text], 10).astype("<i2").tobytes()
    return pcm, [Letter(c, 10.0 * n, 10.0) for n, c in enumerate(text)]


def said(pcm: bytes) -> str:
    return "".join(chr(v) for v in np.frombuffer(pcm, "<i2")[5::10])


def recite(text: str, size: int) -> tuple[AlignmentTracker, str, list[tuple[str, int, int]]]:
    recital, pcm, words = AlignmentTracker(RATE), b"", []
    recital.add(text)
    for at in range(0, len(text), size):
        more, reported = recital.hear(*sound(text[at : at + size]))
        pcm, words = pcm + more, words + [(w.text, w.start, w.end) for w in reported]
    more, reported = recital.finish()
    return recital, said(pcm + more), words + [(w.text, w.start, w.end) for w in reported]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_however_it_comes_it_is_the_same(size: int) -> None:
    text = "one, two three."
    recital, heard, words = recite(text, size)
    assert heard == text and recital.unread == ""
    assert words == [("one, ", 0, 40), ("two ", 50, 80), ("three. ", 90, 150)]


def test_half_a_word_waits_for_the_rest_of_it() -> None:
    recital = AlignmentTracker(RATE)
    recital.add("one two")
    pcm, words = recital.hear(*sound("one tw"))
    assert said(pcm) == "one " and [w.text for w in words] == ["one "]
    assert recital.unread == "two" and recital.ahead == 3
    pcm, words = recital.hear(*sound("o"))
    assert said(pcm) == "two" and (words[0].start, words[0].end) == (40, 70)


def test_another_connection_goes_on_with_the_word_that_was_not_whole() -> None:
    recital = AlignmentTracker(RATE)
    recital.add("one two three")
    heard = recital.hear(*sound("one tw"))[0]
    recital.broken()
    assert recital.resumable and recital.unread == "two three"
    pcm, words = recital.hear(*sound("two three"))
    assert said(heard + pcm) == "one two three"
    assert [(w.text, w.start) for w in words] == [("two ", 40), ("three ", 80)]


def test_without_letters_sound_goes_on_and_there_is_no_place_to_resume() -> None:
    recital = AlignmentTracker(RATE)
    recital.add("one two")
    assert recital.resumable
    pcm, _ = recital.hear(sound("one")[0], None)
    assert said(pcm) == "one" and not recital.resumable and recital.ahead == 0


def test_silence_without_letters_after_words_is_no_loss_of_place() -> None:
    recital = AlignmentTracker(RATE)
    recital.add("one two")
    recital.hear(*sound("one "))
    pcm, _ = recital.hear(bytes(100), None)
    assert len(pcm) == 100 and recital.resumable and recital.unread == "two"


@pytest.mark.parametrize("reported", ["won t t three four", "oneX twooo three four", " one two thre four"])
def test_a_reader_that_counts_letters_otherwise_finds_back_at_the_next_space(reported: str) -> None:
    recital = AlignmentTracker(RATE)
    recital.add("one two three four five")
    recital.hear(*sound(reported + " "))
    recital.broken()
    assert recital.unread in ("five", "four five")


def test_scripts_without_spaces_go_by_character() -> None:
    recital = AlignmentTracker(RATE)
    recital.add("今天天气很好。")
    pcm, words = recital.hear(*sound("今天天"))
    assert said(pcm) == "今天天" and [w.text for w in words] == ["今", "天", "天"]
    recital.broken()
    assert recital.unread == "气很好。"


def test_words_that_were_not_reported_come_at_the_end() -> None:
    recital = AlignmentTracker(RATE)
    recital.add("one two")
    recital.hear(*sound("one "))
    _, words = recital.finish()
    assert [(w.text, w.start, w.end) for w in words] == [("two ", 40, 40)]
