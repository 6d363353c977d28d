"""What is known of a render's speech: of a voice, of a transcript by its phones or by its letters; looked for once."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest

from musetalk_agent.features.phonemes import classes_of
from musetalk_agent.judge.closures import HeardText
from musetalk_agent.judge.forced_alignment import IPA, AlignedWord
from musetalk_agent.media_types import Cue
from musetalk_agent.renders import known_speech
from musetalk_agent.renders.known_speech import (
    FilmWord,
    WordTiming,
    film_cues,
    film_words,
    find_transcript,
    lips_meet,
    word_timing,
)

HEARD = HeardText(
    [AlignedWord("mob", 0.1, 0.6, (("M", 0.1, 0.2), ("AA", 0.2, 0.5), ("B", 0.5, 0.6)))], [(0.1, 0.2), (0.5, 0.6)]
)
BY_LETTERS = HeardText([AlignedWord("mob", 0.1, 0.6)], [(0.1, 0.2)])


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    with wave.open(str(path := tmp_path / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(32_000))
    return path


def found(monkeypatch: pytest.MonkeyPatch, heard: HeardText | None) -> list[str]:
    """The texts that are looked for; each is found as `heard`."""
    looked: list[str] = []
    monkeypatch.setattr(known_speech, "heard_text", lambda text, *_: looked.append(text) or heard)
    return looked


def test_a_transcript_is_looked_for_once(tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = found(monkeypatch, HEARD)
    find_transcript(tmp_path, "mob", sound)
    find_transcript(tmp_path, "mob", sound)
    assert looked == ["mob"]
    assert film_words(tmp_path) == [FilmWord("mob", 0.1, 0.6)] and word_timing(tmp_path) is WordTiming.PHONES
    assert film_cues(tmp_path) == [
        Cue("m", 1600, 3200, found=True),
        Cue("ɑ", 3200, 8000, found=True),
        Cue("b", 8000, 9600, found=True),
    ]
    assert lips_meet(tmp_path) == [(0.1, 0.2), (0.5, 0.6)]


def test_one_by_its_letters_says_so_and_moves_no_mouth(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, BY_LETTERS)
    find_transcript(tmp_path, "mob", sound)
    assert word_timing(tmp_path) is WordTiming.LETTERS and film_cues(tmp_path) == []
    assert film_words(tmp_path) == [FilmWord("mob", 0.1, 0.6)] and lips_meet(tmp_path) == [(0.1, 0.2)]


def test_one_that_is_not_found_leaves_nothing(tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, None)
    find_transcript(tmp_path, "mob", sound)
    assert film_words(tmp_path) == film_cues(tmp_path) == [] and lips_meet(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["sound.wav"]


def test_a_voice_knows_its_words_its_phonemes_and_when_lips_meet(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = found(monkeypatch, HEARD)
    (tmp_path / "words.json").write_text(json.dumps([["mama ", 0.5, 0.9]]))
    (tmp_path / "cues.json").write_text(
        json.dumps([["m", 8000, 9600], ["ˈ", 9600, 9600], ["aː", 9600, 12800], ["pʰ", 12800, 14400]])
    )
    find_transcript(tmp_path, "something else", sound)
    assert looked == [] and film_words(tmp_path) == [FilmWord("mama ", 0.5, 0.9)]
    assert word_timing(tmp_path) is WordTiming.VOICE
    assert film_cues(tmp_path)[0] == Cue("m", 8000, 9600)
    assert lips_meet(tmp_path) == [(0.5, 0.6), (0.8, 0.9)]


@pytest.mark.parametrize("damaged", ["", "{", "7", "[1, 2]", '[["m", null, 3]]'])
def test_damaged_files_are_as_none(tmp_path: Path, damaged: str) -> None:
    for name in ("words.json", "cues.json"):
        (tmp_path / name).write_text(damaged)
    assert film_words(tmp_path) == film_cues(tmp_path) == [] and lips_meet(tmp_path) is None


def test_every_phone_of_the_dictionary_is_a_sound() -> None:
    silent, unknown = classes_of(""), classes_of("?")
    assert len(IPA) == 39 and not [phone for phone, symbol in IPA.items() if classes_of(symbol) in (silent, unknown)]
    assert [phone for phone, symbol in IPA.items() if symbol in "pbm"] == ["B", "M", "P"]
