"""What is known of a render's speech before its frames are made, in files of its folder.

    words.json      each word with its begin and end, seconds
    cues.json       each phoneme (IPA) with its start and end, samples at 16 kHz
    lips.json       begin and end of each sound at which lips meet, seconds: of a transcript only

The orchestrator writes the first two of a text that a voice speaks. Those of a transcript are found in the sound, once: when the
render is prepared.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from musetalk_agent.features.mouth_network import MouthNetwork, default_weights
from musetalk_agent.features.phonemes import LIPS_MEET, spans
from musetalk_agent.judge.closures import heard_text
from musetalk_agent.judge.forced_alignment import IPA
from musetalk_agent.media_types import FEATURE_RATE, Cue
from musetalk_agent.tools.audio_file import AudioFile, mono

WORDS_FILE, CUES_FILE, LIPS_FILE = "words.json", "cues.json", "lips.json"


@dataclass(frozen=True, slots=True)
class FilmWord:
    """A word, or a clause where words are not known, and when it is heard: seconds of the film."""

    text: str
    begin: float
    end: float


class WordTiming(StrEnum):
    """Where the times of words come from: the voice that spoke them, or a transcript's phones or letters found in the sound."""

    VOICE = "voice"
    PHONES = "phones"
    LETTERS = "letters"


def find_transcript(folder: Path, transcript: str, sound: Path) -> None:
    """Finds what a transcript says in a render's sound, unless words are known; a text that cannot be aligned leaves nothing.

    Blocks for 0.1 s a second of sound. Raises AudioUnreadable; WeightsMissing; OSError.
    """
    if (folder / WORDS_FILE).exists():
        return
    voice = mono(AudioFile.open(sound), FEATURE_RATE)
    heard = heard_text(transcript, voice, MouthNetwork.load(default_weights()))
    if heard is None:
        return
    phones = [
        (IPA[phone], round(begin * FEATURE_RATE), round(end * FEATURE_RATE))
        for word in heard.words
        for phone, begin, end in word.phones
    ]
    if phones:
        _keep(folder / CUES_FILE, phones)
    _keep(folder / LIPS_FILE, heard.lips)
    _keep(folder / WORDS_FILE, [(word.text, word.begin, word.end) for word in heard.words])


def film_words(folder: Path) -> list[FilmWord]:
    """The words of a render; empty where they are not known."""
    with suppress(TypeError):
        return [FilmWord(str(text), float(begin), float(end)) for text, begin, end in _kept(folder / WORDS_FILE)]
    return []


def film_cues(folder: Path) -> list[Cue]:
    """The phonemes of a render; empty where they are not known."""
    found = (folder / LIPS_FILE).exists()
    with suppress(TypeError):
        return [Cue(str(phoneme), int(start), int(end), found) for phoneme, start, end in _kept(folder / CUES_FILE)]
    return []


def lips_meet(folder: Path) -> list[tuple[float, float]] | None:
    """When /p b m/ are heard, begin and end in seconds of the film; None where that is not known."""
    if (folder / LIPS_FILE).exists():
        return [(float(begin), float(end)) for begin, end in _kept(folder / LIPS_FILE)]
    cues = film_cues(folder)
    if not cues:
        return None
    sounds = spans((cue.phoneme, cue.start, cue.end) for cue in cues)
    return [(start / FEATURE_RATE, end / FEATURE_RATE) for kind, start, end in sounds if kind in LIPS_MEET]


def word_timing(folder: Path) -> WordTiming:
    """How the words of `film_words` got their times."""
    if not (folder / LIPS_FILE).exists():
        return WordTiming.VOICE
    return WordTiming.PHONES if (folder / CUES_FILE).exists() else WordTiming.LETTERS


def _keep(path: Path, rows: list[Any]) -> None:
    """Writes a file, whole."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    made.write_text(json.dumps(rows), "utf-8")
    made.replace(path)


def _kept(path: Path) -> list[Any]:
    with suppress(FileNotFoundError, ValueError):
        return list(json.loads(path.read_bytes()))
    return []
