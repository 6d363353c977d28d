"""Captions: lines of a readable length, at the times at which their words are heard, in two formats."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from musetalk_agent.features.mouth_network import MouthNetwork, default_weights
from musetalk_agent.judge.alignment import word_times
from musetalk_agent.renders.film_captions import captions, srt, vtt, write_captions
from musetalk_agent.renders.known_speech import FilmWord
from tests.musetalk_agent.measure.test_measure_sync import RATE, speech


def spoken(text: str, begin: float = 0.0, each_s: float = 0.3) -> list[FilmWord]:
    return [FilmWord(word, begin + k * each_s, begin + (k + 1) * each_s) for k, word in enumerate(text.split())]


def test_sentences_pauses_and_width_part_captions() -> None:
    words = [*spoken("Hello there. How are you"), *spoken("fine", begin=4.0)]
    shown = captions(words, 10.0)
    assert [caption.lines for caption in shown] == [("Hello there.",), ("How are you",), ("fine",)]
    assert [c.begin for c in shown] == pytest.approx([0.0, 0.6, 4.0])
    assert [c.end for c in shown] == pytest.approx([0.6, 1.6, 5.0])
    long = captions(spoken("word " * 60, each_s=0.1), 60.0)
    assert all(len(line) <= 42 for caption in long for line in caption.lines)
    assert all(len(caption.lines) <= 2 for caption in long)
    assert " ".join(line for caption in long for line in caption.lines) == ("word " * 60).strip()
    assert all(one.end <= other.begin + 1e-9 for one, other in pairwise(long))


def test_what_is_heard_after_the_film_is_not_shown() -> None:
    shown = captions(spoken("one two three four five", each_s=1.0), 2.5)
    assert [caption.lines for caption in shown] == [("one two three",)] and shown[-1].end == 2.5


def test_both_formats() -> None:
    shown = captions([FilmWord("A & B <i>", 3661.0, 3662.5)], 4000.0)
    assert srt(shown) == "1\n01:01:01,000 --> 01:01:02,500\nA & B <i>\n"
    assert vtt(shown) == "WEBVTT\n\n01:01:01.000 --> 01:01:02.500\nA &amp; B &lt;i&gt;\n"


def test_captions_are_written_in_both_formats(tmp_path: Path) -> None:
    write_captions(captions([FilmWord("hi ", 0.5, 0.9)], 2.0), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.srt", "result.vtt"]


def test_a_transcript_is_laid_along_its_sound() -> None:
    voice = speech()
    text = "one 2 three four five six"
    found = word_times(text, voice, MouthNetwork.load(default_weights()))
    assert found is not None and [word for word, _, _ in found] == text.split()
    begins = [begin for _, begin, _ in found]
    assert begins == sorted(begins) and all(begin <= end <= len(voice) / RATE for _, begin, end in found)
    assert word_times("word " * 3000, voice, MouthNetwork.load(default_weights())) is None
    assert word_times("Добрый день, мир!", voice, MouthNetwork.load(default_weights())) is None
    assert word_times("今日はいい天気です", voice, MouthNetwork.load(default_weights())) is None
    assert word_times("Zażółć gęślą", voice, MouthNetwork.load(default_weights())) is not None
    assert word_times("123 456", voice[:RATE], MouthNetwork.load(default_weights())) == [
        ("123", 0.0, 0.5),
        ("456", 0.5, 1.0),
    ]
