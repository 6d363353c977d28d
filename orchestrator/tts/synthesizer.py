"""The interface of speech synthesis that every provider implements; speech of a growing text sentence by sentence; errors and
waiting times that remote providers share."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.retries import RetryVerdict, verdict
from orchestrator.tts import pauses
from orchestrator.tts.lexicon import Lexicon
from orchestrator.tts.segmentation import SENTENCE_PAUSE_MS, GrowingText

CHUNK_MS = 200
"""Longest piece of PCM handed out at once (ms): bounds memory, and how long a cancel can take to be noticed."""

PAUSE = "_"
"""Phoneme of a cue without speech: silence between and around the words."""


@dataclass(frozen=True)
class VoiceInfo:
    """One voice: `name` as callers write it (`piper:joe`), BCP 47 `language` (`mul`: any), its provider, samples per second.

    `speakers` of a voice that has several are named after it (`piper:NAME:SPEAKER`); without one the first speaks.
    """

    name: str
    language: str
    provider: str
    sample_rate: int
    quality: str = ""
    speakers: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every name that callers may write: its own, and those of its speakers."""
        return [self.name, *(f"{self.name}:{speaker}" for speaker in self.speakers)]

    def view(self) -> dict[str, Any]:
        """For `GET /voices`; without what is not known."""
        return {name: value for name, value in asdict(self).items() if value}


SLOWEST_SPEED, FASTEST_SPEED = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """How a text is spoken.

    Attributes:
        speed: a multiple of the voice's own pace, 0.5 … 2. A provider with a narrower range takes the nearest that it has.
        sentence_pause_ms, paragraph_pause_ms: silence after them, at speed 1; None: the provider's own.
        lexicons: how words are said; the nearer first.
    """

    speed: float = 1.0
    sentence_pause_ms: int | None = None
    paragraph_pause_ms: int | None = None
    lexicons: tuple[Lexicon, ...] = ()


PLAIN = SpeechOptions()
"""A voice as it is."""


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

    def speak(self, text: str, voice: str, options: SpeechOptions = PLAIN) -> AsyncGenerator[SpeechChunk, None]:
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

    def stream(
        self, text: GrowingText, voice: str, options: SpeechOptions = PLAIN
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Speaks a growing text as `speak` does a whole one, sentence by sentence, and raises the same.

        Raises:
            ProblemError: while iterating also `voice_unauthorized`, `voice_quota_exceeded`, `voice_timeout`, `voice_unknown`.
        """
        ...


@runtime_checkable
class LanguageRanker(Protocol):
    """A provider that finds the language of texts."""

    async def ranking(self, text: str, languages: list[str]) -> list[tuple[str, float]]:
        """The likeliest of the languages (ISO 639-1) first, with their shares of 1; empty where that cannot be known."""
        ...


def pieces(pcm: bytes, sample_rate: int, words: tuple[CaptionWord, ...] = ()) -> Iterator[SpeechChunk]:
    """Sound of any length as chunks; the words go with the first, which may be without sound."""
    step = 2 * (sample_rate * CHUNK_MS // 1000)
    for begin in range(0, len(pcm), step) if pcm else (range(1) if words else ()):
        yield SpeechChunk(pcm[begin : begin + step], sample_rate, (), words if begin == 0 else ())


async def speak_sentences(
    text: GrowingText,
    speak: Callable[[str], AsyncGenerator[SpeechChunk, None]],
    options: SpeechOptions = PLAIN,
    pause_ms: int = SENTENCE_PAUSE_MS,
) -> AsyncGenerator[SpeechChunk, None]:
    """Speaks sentence by sentence, with a pause between them that follows the speed, and the pauses that the text asks for.

    Raises what `speak` raises; a sentence with nothing to say is left out, as long as another has something.
    """
    natural_ms = (pause_ms if options.sentence_pause_ms is None else options.sentence_pause_ms) / options.speed
    line, unspeakable = _SentenceLine(), None
    try:
        while (sentence := await text.next()) is not None:
            for piece, asked_ms in pauses.split(sentence):
                try:
                    if piece.strip():
                        async with aclosing(speak(piece)) as spoken:
                            async for chunk in line.placed(spoken):
                                yield chunk
                        line.owe(natural_ms, asked=False)
                except ProblemError as error:
                    if error.code is not ErrorCode.INVALID_REQUEST:
                        raise
                    unspeakable = error
                if asked_ms:
                    line.owe(asked_ms, asked=True)
        for chunk in line.end():
            yield chunk
    finally:
        text.abandon()
    if unspeakable is not None and line.position == 0:
        raise unspeakable


class _SentenceLine:
    """Sentences one after the other, with the silence between them; samples count from the first sentence's beginning."""

    def __init__(self) -> None:
        self.position = 0
        self._rate = 0
        self._cued = False
        self._owed_ms = 0.0
        self._asked = False

    def owe(self, ms: float, *, asked: bool) -> None:
        """Silence before what comes next. What the text asks for takes the place of what is natural, and adds to what it asked."""
        if asked:
            self._owed_ms = min(float(pauses.PAUSE_MS_MAX), ms + (self._owed_ms if self._asked else 0))
            self._asked = True
        elif self.position:
            self._owed_ms, self._asked = ms, False

    async def placed(self, spoken: AsyncGenerator[SpeechChunk, None]) -> AsyncGenerator[SpeechChunk, None]:
        """A sentence's chunks, behind what was said before it."""
        begin: int | None = None
        async for chunk in spoken:
            if begin is None:
                self._rate, self._cued = chunk.sample_rate, self._cued or bool(chunk.cues)
                for silence in self._silence():
                    yield silence
                begin = self.position
            yield _later(chunk, begin)
            self.position += len(chunk.pcm) // 2

    def end(self) -> Iterator[SpeechChunk]:
        """The pause that the text ends with, if it asks for one."""
        if self._asked and self.position:
            yield from self._silence()

    def _silence(self) -> Iterator[SpeechChunk]:
        samples = round(self._rate * self._owed_ms / 1000)
        self._owed_ms, self._asked = 0.0, False
        cue = CueItem(phoneme=PAUSE, start=self.position, end=self.position + samples)
        for index, chunk in enumerate(pieces(bytes(2 * samples), self._rate)):
            yield SpeechChunk(chunk.pcm, chunk.sample_rate, (cue,) if self._cued and index == 0 else ())
        self.position += samples


def _later(chunk: SpeechChunk, by: int) -> SpeechChunk:
    if not by:
        return chunk
    cues = tuple(CueItem(phoneme=c.phoneme, start=c.start + by, end=c.end + by) for c in chunk.cues)
    words = tuple(CaptionWord(text=w.text, start=w.start + by, end=w.end + by) for w in chunk.words)
    return SpeechChunk(chunk.pcm, chunk.sample_rate, cues, words)


ANSWER_S = 15.0
"""A provider that has text to speak and gives no sound for this long is given up."""
CONNECT_S = 5.0
TOTAL_ANSWERS = 4
"""All the waiting for one sentence or connection is at most so many times the longest silence …"""
SLOWEST = 4.0
"""… and so many seconds for each second of sound that came: a voice that is slower than that never plays smoothly."""
_WORD_CHARACTERS = 100

_UNAUTHORIZED = frozenset(
    "invalid_api_key missing_api_key needs_authorization unauthorized authentication_error missing_permissions "
    "detected_unusual_activity invalid_authorization_header only_for_creator+ account_deactivated".split()
)
_QUOTA = frozenset("quota_exceeded insufficient_quota payment_required billing_hard_limit_reached".split())
_NO_VOICE = frozenset(
    "voice_not_found voice_does_not_exist invalid_voice voice_id_does_not_exist invalid_voice_id".split()
)
_BUSY = frozenset(
    "too_many_concurrent_requests system_busy rate_limit_exceeded rate_limited server_error internal_server_error".split()
)


@dataclass(frozen=True, slots=True)
class ProviderError:
    """What a provider said: its own word for it, or the HTTP status where it has none."""

    provider: str
    voice: str
    word: str = ""
    status: int = 0
    retry_after_s: float | None = None

    @property
    def passing(self) -> bool:
        """Whether it may be gone the next time."""
        if self.word in _BUSY or self.word == NO_SOUND:
            return True
        known = self.word in _UNAUTHORIZED | _QUOTA | _NO_VOICE
        return not known and self.status != 0 and verdict(self.status) is not RetryVerdict.FINAL

    def problem(self, variable: str) -> ProblemError:
        """The error for the caller; `variable` holds the provider's key. Nothing of the provider's own sentence is repeated."""
        said = self.word[:60] or f"HTTP {self.status}"
        if self.word in _QUOTA or self.status == _PAYMENT_REQUIRED:
            return ProblemError(
                ErrorCode.VOICE_QUOTA_EXCEEDED,
                f"{self.provider} speaks no more for this account ({said}): raise its limit, or use another voice.",
            )
        if self.word in _UNAUTHORIZED or (self.word not in _NO_VOICE and self.status in _REFUSED):
            return ProblemError(
                ErrorCode.VOICE_UNAUTHORIZED, f"{self.provider} does not take our key ({said}): check {variable}."
            )
        if self.word in _NO_VOICE:
            return ProblemError(
                ErrorCode.VOICE_UNKNOWN,
                f"{self.provider} has no voice {self.voice[:80]!r}.",
                field="voice",
                value=self.voice[:80],
            )
        return ProblemError(
            ErrorCode.TTS_FAILED,
            f"{self.provider} could not speak this text ({said}): try again.",
            retry_after_s=None if self.retry_after_s is None else min(_RETRY_AFTER_S, math.ceil(self.retry_after_s)),
        )


_PAYMENT_REQUIRED = 402
_REFUSED = frozenset({401, 403})
_RETRY_AFTER_S = 24 * 3600
NO_SOUND = "no_sound"
"""Our word for an answer that is complete and empty."""


class Patience:
    """How long to wait for a provider that owes sound: `answer_s` for the first sound and between two pieces, and a total that
    grows with the sound, so that a trickle ends too. Only time that is spent waiting counts. Seconds, without a clock.
    """

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._silent_s = 0.0
        self._left_s = TOTAL_ANSWERS * answer_s

    @property
    def left_s(self) -> float:
        """The longest wait now; 0 when it is over."""
        return max(0.0, min(self._answer_s - self._silent_s, self._left_s))

    def waited(self, seconds: float) -> None:
        """So long was waited, and no sound has come yet."""
        self._silent_s += seconds
        self._left_s -= seconds

    def heard(self, seconds: float) -> None:
        """So much sound came."""
        if seconds > 0:
            self._silent_s = 0.0
            self._left_s += SLOWEST * seconds


def word_of(body: bytes | bytearray) -> str:
    """The provider's word in an error's body; empty when there is none."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "detail"):
        inner = value.get(name) if isinstance(value, dict) else None
        if isinstance(inner, str):
            return inner[:_WORD_CHARACTERS]
        if isinstance(inner, dict):
            found = inner.get("code") or inner.get("status") or inner.get("type")
            return found[:_WORD_CHARACTERS] if isinstance(found, str) else ""
    return ""


def silent(provider: str, answer_s: float = ANSWER_S) -> ProblemError:
    """For one that has text to speak and gives no sound."""
    return ProblemError(
        ErrorCode.VOICE_TIMEOUT, f"{provider} gave no sound for {answer_s:g} s: try again.", limit=answer_s
    )


def unreachable(provider: str) -> ProblemError:
    """For one that does not answer, or breaks off again and again."""
    return ProblemError(ErrorCode.TTS_FAILED, f"The connection to {provider} fails: try again.")
