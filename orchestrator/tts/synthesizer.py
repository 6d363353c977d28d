"""The interface of speech synthesis that every provider implements, and speech of a growing text sentence by sentence."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.segmentation import SENTENCE_PAUSE_MS, GrowingText

CHUNK_MS = 200
"""Longest piece of PCM handed out at once (ms): bounds memory, and how long a cancel can take to be noticed."""

PAUSE = "_"
"""Phoneme of a cue without speech: silence between and around the words."""


@dataclass(frozen=True)
class VoiceInfo:
    """One voice: `name` as callers write it (`piper:joe`), BCP 47 `language`, its provider, samples per second."""

    name: str
    language: str
    provider: str
    sample_rate: int


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """A piece of an utterance.

    `pcm` is int16 little endian mono, at most 200 ms. `cues` are the phonemes (IPA, stress and length marks attached; `_` for
    a pause) that begin with this chunk; `start` and `end` count samples at `sample_rate` from the utterance's first sample, so
    they reach past this chunk: cues always come with or before their sound. Over an utterance they follow each other without
    a gap from sample 0 to the last. Empty where the provider knows no phonemes. `words` are what is said, counted and sent the
    same way; put together they are the text. A provider that knows the length of a sentence and no more uses `captions.spread`.
    """

    pcm: bytes
    sample_rate: int
    cues: tuple[CueItem, ...]
    words: tuple[CaptionWord, ...] = ()


class Synthesizer(Protocol):
    """A provider of voices."""

    async def open(self) -> None:
        """Makes the voices ready. Having none (nothing installed, no key) is not an error."""
        ...

    def names(self) -> list[VoiceInfo]:
        """The voices that can speak now."""
        ...

    def speak(self, text: str, voice: str) -> AsyncGenerator[SpeechChunk, None]:
        """Speaks `text` with one of `names()`; makes no more sound ahead than a bounded amount.

        Closing the generator, or cancelling the task inside it, ends the synthesis.

        Raises:
            ProblemError: `invalid_request`, at once, when nothing in the text can be spoken or it is too long;
                `tts_failed`, at once or while iterating, when the provider is overloaded or breaks.
        """
        ...

    async def aclose(self) -> None:
        """Releases everything, in bounded time; utterances in progress end with `tts_failed`. Safe to call twice."""
        ...


@runtime_checkable
class RemoteSynthesizer(Synthesizer, Protocol):
    """A provider elsewhere: it has more voices than it lists, and reads a text while that is being written."""

    provider: str
    """What the names of its voices begin with, before the colon."""

    def stream(self, text: GrowingText, voice: str) -> AsyncGenerator[SpeechChunk, None]:
        """Speaks a growing text as `speak` does a whole one, sentence by sentence, and raises the same.

        Raises:
            ProblemError: while iterating also `voice_unauthorized`, `voice_quota_exceeded`, `voice_timeout`, `voice_unknown`.
        """
        ...


def pieces(pcm: bytes, sample_rate: int, words: tuple[CaptionWord, ...] = ()) -> Iterator[SpeechChunk]:
    """Sound of any length as chunks; the words go with the first, which may be without sound."""
    step = 2 * (sample_rate * CHUNK_MS // 1000)
    for begin in range(0, len(pcm), step) if pcm else (range(1) if words else ()):
        yield SpeechChunk(pcm[begin : begin + step], sample_rate, (), words if begin == 0 else ())


async def speak_sentences(
    text: GrowingText,
    speak: Callable[[str], AsyncGenerator[SpeechChunk, None]],
    pause_ms: int = SENTENCE_PAUSE_MS,
) -> AsyncGenerator[SpeechChunk, None]:
    """Speaks sentence by sentence, with a pause between them. Raises what `speak` raises; a sentence with nothing to say is left
    out, as long as another has something.
    """
    position, cued, unspeakable = 0, False, None
    try:
        while (sentence := await text.next()) is not None:
            try:
                spoken = speak(sentence)
                async with aclosing(spoken):
                    begin = position
                    async for chunk in spoken:
                        if position == begin and begin:
                            for silence in _silence(position, chunk.sample_rate, pause_ms, cued):
                                yield silence
                                position += len(silence.pcm) // 2
                            begin = position
                        yield _later(chunk, begin)
                        position += len(chunk.pcm) // 2
                        cued = cued or bool(chunk.cues)
            except ProblemError as error:
                if error.code is not ErrorCode.INVALID_REQUEST:
                    raise
                unspeakable = error
    finally:
        text.abandon()
    if unspeakable is not None and position == 0:
        raise unspeakable


def _silence(position: int, rate: int, pause_ms: int, cued: bool) -> list[SpeechChunk]:
    samples = rate * pause_ms // 1000
    out = list(pieces(bytes(2 * samples), rate))
    if out and cued:
        cue = CueItem(phoneme=PAUSE, start=position, end=position + samples)
        out[0] = SpeechChunk(out[0].pcm, rate, (cue,))
    return out


def _later(chunk: SpeechChunk, by: int) -> SpeechChunk:
    if not by:
        return chunk
    cues = tuple(CueItem(phoneme=c.phoneme, start=c.start + by, end=c.end + by) for c in chunk.cues)
    words = tuple(CaptionWord(text=w.text, start=w.start + by, end=w.end + by) for w in chunk.words)
    return SpeechChunk(chunk.pcm, chunk.sample_rate, cues, words)
