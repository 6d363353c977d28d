"""Words are found by their phones in real speech of the product's own voice, which knows when it says each."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from musetalk_agent.features.mouth_network import MouthNetwork, default_weights
from musetalk_agent.judge import aligner_main, forced_alignment
from musetalk_agent.judge.alignment import Alignment, align, placed_words
from musetalk_agent.judge.closures import lip_sounds
from musetalk_agent.judge.forced_alignment import AlignedWord, lip_phones, refined
from musetalk_agent.media_types import FEATURE_RATE, Pcm
from orchestrator.tts.voices import Voices

pytest.importorskip("pocketsphinx")
pytestmark = pytest.mark.voice
SENTENCES = (
    "In 1999 the company was founded by two brothers who wanted to make people's lives easier.",
    "I don't think that's what she meant. Perhaps you could ask her again tomorrow?",
    "Please remember to bring a map, because not one in the village has ever seen Zumbrota.",
)
WRONG = "Two old friends were walking along the river, and one of them was carrying a heavy yellow bag full of books."


@dataclass(frozen=True)
class Speech:
    """Speech at 16 kHz and when the voice says each of its words, seconds."""

    text: str
    pcm: Pcm
    words: list[tuple[str, float]]


@pytest.fixture(scope="module")
def speech() -> Speech:
    return asyncio.run(said())


async def said() -> Speech:
    voices = Voices()
    await voices.open()
    sounds, words, at = [], [], 0
    for sentence in SENTENCES:
        begun = at
        async for chunk in voices.speak(sentence, "piper:joe"):
            words += [(word.text.strip(), (begun + word.start) / chunk.sample_rate) for word in chunk.words]
            sounds.append(np.frombuffer(chunk.pcm, "<i2"))
            at += len(sounds[-1])
            rate = chunk.sample_rate
        sounds.append(np.zeros(rate // 2, np.int16))
        at += len(sounds[-1])
    await voices.aclose()
    spoken = np.concatenate(sounds)
    moments = np.arange(0, len(spoken), rate / FEATURE_RATE)
    pcm = np.interp(moments, np.arange(len(spoken)), spoken).astype(np.int16)
    return Speech(" ".join(SENTENCES), pcm, words)


@pytest.fixture(scope="module")
def network() -> MouthNetwork:
    return MouthNetwork.load(default_weights())


def rough(text: str, speech: Speech, network: MouthNetwork) -> tuple[Alignment, list[AlignedWord]]:
    """A text along its letters."""
    found = align(text, speech.pcm, network)
    assert found is not None
    return found, [AlignedWord(*word) for word in placed_words(found, text, len(speech.pcm) / FEATURE_RATE)]


def test_words_are_found_where_the_voice_says_them(speech: Speech, network: MouthNetwork) -> None:
    aligned, letters = rough(speech.text, speech, network)
    found = refined(aligned, speech.text, speech.pcm)
    assert [word.text for word in found] == [word for word, _ in speech.words] == speech.text.split()
    said = np.array([begin for _, begin in speech.words])
    errors = np.abs([word.begin for word in found] - said)
    assert np.median(errors) <= 0.08 and np.quantile(errors, 0.9) <= 0.25  # the voice says it another way each time
    assert errors.mean() < np.abs([word.begin for word in letters] - said).mean()
    assert all(one.begin <= one.end <= len(speech.pcm) / FEATURE_RATE for one in found)
    assert all(one.end <= other.begin + 1e-6 for one, other in pairwise(found))
    bring = next(word for word in found if word.text == "bring")
    assert [phone for phone, _, _ in bring.phones] == ["B", "R", "IH", "NG"]


def test_lips_meet_at_the_sounds_that_the_words_have(speech: Speech, network: MouthNetwork) -> None:
    found = refined(rough(speech.text, speech, network)[0], speech.text, speech.pcm)
    sounds = lip_sounds(speech.text, speech.pcm, network)
    assert sounds is not None and sounds == lip_phones(found)
    assert len(sounds) == sum(phone in ("P", "B", "M") for word in found for phone, _, _ in word.phones) >= 12


def test_what_is_not_said_keeps_its_letters(speech: Speech, network: MouthNetwork) -> None:
    for text in (WRONG, "Das ist ein deutscher Satz, den hier niemand jemals gesagt hat.", "… — 17"):
        aligned, letters = rough(text, speech, network)
        assert refined(aligned, text, speech.pcm) == letters and lip_phones(letters) is None
    assert refined(rough("", speech, network)[0], "", speech.pcm) == []


def test_a_search_that_fails_or_hangs_costs_the_precision_only(
    speech: Speech, network: MouthNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    aligned, letters = rough(speech.text, speech, network)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert refined(aligned, speech.text, speech.pcm) == letters

    def hangs(*_: object, timeout: float, **__: object) -> None:
        assert timeout > len(speech.pcm) / FEATURE_RATE
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert refined(aligned, speech.text, speech.pcm) == letters
    assert [record.getMessage() for record in caplog.records] == [
        "the aligner failed: words are aligned by their letters"
    ] * 2
    monkeypatch.setattr(forced_alignment, "find_spec", lambda name: None)
    assert refined(aligned, speech.text, speech.pcm) == letters and len(caplog.records) == 2


def test_a_word_that_is_not_found_stays_between_its_neighbours() -> None:
    words = [("one", 0.0, 0.9), ("two", 0.3, 0.4), ("three", 0.5, 3.0), ("four", 3.0, 4.0)]
    phones = [[("W", 0.1, 0.2), ("AH", 0.2, 0.5)], None, None, [("F", 2.0, 2.1)]]
    assert [(word.begin, word.end) for word in forced_alignment._merged(words, phones, 5.0)] == [
        (0.1, 0.5),
        (0.5, 0.5),
        (0.5, 2.0),
        (2.0, 2.1),
    ]
    last = forced_alignment._merged(words, [*phones[:3], None], 3.5)[-1]
    assert (last.begin, last.end, last.phones) == (3.0, 3.5, ())


def test_a_long_text_is_cut_at_its_pauses() -> None:
    words = [("word", k + 0.1, k + 0.9 - (0.5 if k % 20 == 19 else 0)) for k in range(100)]
    windows = aligner_main._windows(words)
    assert [k for window in windows for k in window] == list(range(100))
    assert [window.start for window in windows] == [0, 20, 40, 60, 80]
    assert aligner_main._windows([]) == [range(0)]
