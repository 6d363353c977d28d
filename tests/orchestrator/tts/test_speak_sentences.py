from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import SpeechChunk, pieces, speak_sentences

RATE = 1000


async def say(sentence: str) -> AsyncGenerator[SpeechChunk, None]:
    """A hundred samples a sentence, with one cue and one word."""
    if "?" in sentence:
        raise ProblemError(ErrorCode.INVALID_REQUEST, "Nothing to say.")
    if "!" in sentence:
        raise ProblemError(ErrorCode.TTS_FAILED, "Broken.")
    word = CaptionWord(text=sentence + " ", start=0, end=100)
    yield SpeechChunk(b"\x01\x00" * 60, RATE, (CueItem(phoneme="a", start=0, end=100),), (word,))
    yield SpeechChunk(b"\x01\x00" * 40, RATE, ())


async def test_sentences_become_one_utterance() -> None:
    chunks = [chunk async for chunk in speak_sentences(GrowingText.whole("One. Two."), say, pause_ms=250)]
    pcm = b"".join(chunk.pcm for chunk in chunks)
    assert pcm == b"\x01\x00" * 100 + bytes(500) + b"\x01\x00" * 100
    assert max(len(chunk.pcm) for chunk in chunks) <= 400
    cues = [(c.phoneme, c.start, c.end) for chunk in chunks for c in chunk.cues]
    assert cues == [("a", 0, 100), ("_", 100, 350), ("a", 350, 450)]
    assert [(w.text, w.start) for chunk in chunks for w in chunk.words] == [("One. ", 0), ("Two. ", 350)]


async def test_a_sentence_without_anything_to_say_is_left_out() -> None:
    text = GrowingText.whole("Or? One. What? Two.")
    assert sum([len(chunk.pcm) async for chunk in speak_sentences(text, say, pause_ms=0)]) == 400
    with pytest.raises(ProblemError) as caught:
        [chunk async for chunk in speak_sentences(GrowingText.whole("Or? What?"), say)]
    assert caught.value.code is ErrorCode.INVALID_REQUEST


async def test_a_voice_that_breaks_ends_it() -> None:
    text = GrowingText.whole("One. No! Two.")
    heard = 0
    with pytest.raises(ProblemError):
        async for chunk in speak_sentences(text, say):
            heard += len(chunk.pcm)
    assert heard == 200 and text.abandoned


def test_pieces_carry_words_even_without_sound() -> None:
    word = CaptionWord(text="late", start=7, end=7)
    assert [(c.pcm, c.words) for c in pieces(b"", RATE, (word,))] == [(b"", (word,))]
    assert list(pieces(b"", RATE)) == []
    assert [len(c.pcm) for c in pieces(bytes(900), RATE, (word,))] == [400, 400, 100]
