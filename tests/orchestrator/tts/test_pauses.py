"""Pauses that a text asks for: what is one, and how long it is heard, in whole texts and in growing ones."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from orchestrator.tts import pauses
from orchestrator.tts.segmentation import GrowingText, Splitter
from orchestrator.tts.synthesizer import PAUSE, SpeechChunk, SpeechOptions, speak_sentences
from tests.orchestrator.tts.test_local import RATE, voice, whole


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One [pause 500ms] two.", [("One ", 500), (" two.", 0)]),
        ('One<break time="1.5s"/>two', [("One", 1500), ("two", 0)]),
        ("One <BREAK TIME='20ms'></break> two", [("One ", 20), (" two", 0)]),
        ("[Pause: 2 s] One [pause 0.25s]", [("", 2000), (" One ", 250)]),
        ("One [pause 6s] [pause 6s] two", [("One ", 10_000), (" two", 0)]),
        ("One <break/> two <break strength='x-strong'/> three", [("One ", 400), (" two ", 1000), (" three", 0)]),
        ("[pause 99s]", [("", 10_000)]),
        ("One [pause] two [pause ms] <breakfast> <break", [("One [pause] two [pause ms] <breakfast> <break", 0)]),
        ("", [("", 0)]),
    ],
)
def test_pauses_are_found_and_bounded(text: str, pieces: list[tuple[str, int]]) -> None:
    assert pauses.split(text) == pieces
    assert all(piece.strip() in pauses.without(text) for piece, _ in pieces)


@given(st.text(alphabet='ab [pause5msbreak<>="/. \n', max_size=80))
def test_any_text_keeps_its_words_and_no_pause_is_longer_than_it_may(text: str) -> None:
    pieces = pauses.split(text)
    assert all(0 <= ms <= pauses.PAUSE_MS_MAX for _, ms in pieces)
    assert sum(len(piece) for piece, _ in pieces) <= len(text)
    assert pauses.split(pauses.without(text)) and pieces


@given(st.integers(1, 60), st.sampled_from(["[pause 300ms]", '<break time="0.3s"/>']))
def test_a_growing_text_has_the_same_pauses_however_it_comes(size: int, mark: str) -> None:
    text = f"Hello there, {mark} you. {mark} " + "word " * 70 + f"{mark} end. " + f"Bye {mark}"
    splitter, out = Splitter(), list[str]()
    for at in range(0, len(text), size):
        out += splitter.push(text[at : at + size])
    out += splitter.flush()
    assert sum(ms for sentence in out for _, ms in pauses.split(sentence)) == 4 * 300
    assert " ".join(" ".join(out).replace(pauses.mark(300), " ").split()) == " ".join(text.replace(mark, " ").split())


async def test_a_whole_text_pauses_where_it_says_and_for_so_long() -> None:
    made, _ = voice()
    text = "[pause 100ms] One. [pause 500ms] Two <break time='1s'/> three.\n\nFour. Five [pause 50ms]"
    options = SpeechOptions(speed=2.0, sentence_pause_ms=300, paragraph_pause_ms=800)
    pcm, cues, said = await whole(made.speak(text, "x:y", options))
    part, ms = RATE * 300 // 1000, RATE // 1000
    assert [(cue.start, cue.end) for cue in cues if cue.phoneme == PAUSE] == [
        (0, 100 * ms),
        (100 * ms + part, 600 * ms + part),
        (600 * ms + 2 * part, 1600 * ms + 2 * part),
        (1600 * ms + 3 * part, 2000 * ms + 3 * part),  # of a paragraph: it follows the speed
        (2000 * ms + 4 * part, 2150 * ms + 4 * part),  # of a sentence
        (2150 * ms + 5 * part, 2200 * ms + 5 * part),
    ]
    assert len(pcm) // 2 == cues[-1].end and all(a.end == b.start for a, b in pairwise(cues))
    assert [word.text.strip() for word in said] == ["One.", "Two", "three.", "Four.", "Five"]
    assert [word.start for word in said] == [cue.start for cue in cues if cue.phoneme != PAUSE]


async def test_sentences_pause_as_the_text_says() -> None:
    async def say(sentence: str) -> AsyncGenerator[SpeechChunk, None]:
        cues = (CueItem(phoneme=sentence[0], start=0, end=100),)
        yield SpeechChunk(bytes(200), 1000, cues, (CaptionWord(text=sentence, start=0, end=100),))

    text = GrowingText.whole("[pause 10ms] One. Two [pause 30ms] three. [pause 40ms] [pause 5ms] Four. [pause 7ms]")
    chunks = [chunk async for chunk in speak_sentences(text, say, SpeechOptions(speed=0.5), pause_ms=10)]
    cues = [cue for chunk in chunks for cue in chunk.cues]
    assert [(cue.start, cue.end) for cue in cues if cue.phoneme == PAUSE] == [
        (0, 10),
        (110, 130),  # the natural one, at half the speed
        (230, 260),
        (360, 405),
        (505, 512),
    ]
    assert sum(len(chunk.pcm) // 2 for chunk in chunks) == cues[-1].end == 512
    assert [word.start for chunk in chunks for word in chunk.words] == [10, 130, 260, 405]


@pytest.mark.voice
async def test_the_silence_is_heard() -> None:
    from tests.orchestrator.tts.test_voice_folder import opened_plainly  # needs the extra

    async with opened_plainly() as voices:
        chunks = [c async for c in voices.speak("One apple [pause 900ms] two apples.", "espeak:en-us")]
        pcm, rate = np.frombuffer(b"".join(c.pcm for c in chunks), np.int16), chunks[0].sample_rate
        silent = [cue for c in chunks for cue in c.cues if cue.phoneme == PAUSE and cue.end - cue.start > rate // 2]
        assert len(silent) == 1 and not pcm[silent[0].start + rate // 20 : silent[0].end - rate // 20].any()
        assert 0.9 <= (silent[0].end - silent[0].start) / rate <= 1.0
