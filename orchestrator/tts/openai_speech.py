"""Voices behind `POST /v1/audio/speech`: OpenAI's, and those of the many servers that speak the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from musetalk_agent.protocol.messages import CaptionWord
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.base import SpeechChunk, VoiceInfo, pieces
from orchestrator.tts.captions import spread
from orchestrator.tts.remote import ANSWER_S, BACKOFF_S, CONNECT_S, Refusal, silent, unreachable, word_of
from orchestrator.tts.sentences import GrowingText
from orchestrator.tts.turns import in_turn
from orchestrator.tts.wave import PCM_RATE, SoundReader, WaveError

_log = logging.getLogger(__name__)
CONNECTIONS = 64
"""Sentences that are spoken at once, over all sessions; more wait."""
SENTENCE_S = 180.0
"""Longest sound of one sentence."""
PAUSE_MS = 110
"""Between sentences, which these voices end with a little silence of their own."""
LETTER_S = 0.065
"""How long a letter sounds until the voice has shown it."""
_ERROR_BYTES = 64 << 10
OPENAI_URL = "https://api.openai.com/v1"
OPENAI_VOICES = ("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse")


@dataclass(frozen=True)
class OpenAIOptions:
    """`voices` are listed; any other is passed on as well. `base_url` ends with `/v1`; `sound` is `pcm` or `wav`."""

    api_key: str = field(default="", repr=False)
    base_url: str = OPENAI_URL
    voices: tuple[str, ...] = ()
    model: str = "gpt-4o-mini-tts"
    sound: str = "pcm"
    answer_s: float = ANSWER_S


class OpenAISpeech:
    """`RemoteSynthesizer` of the voices `openai:NAME`."""

    provider = "openai"

    def __init__(self, options: OpenAIOptions) -> None:
        self._options = options
        self._http: httpx.AsyncClient | None = None
        self._letter_s: dict[str, float] = {}

    async def open(self) -> None:
        """Makes the client; nothing is sent."""
        headers = {"Authorization": f"Bearer {self._options.api_key}"} if self._options.api_key else {}
        self._http = httpx.AsyncClient(
            base_url=self._options.base_url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(self._options.answer_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=8),
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def names(self) -> list[VoiceInfo]:
        """The voices that were configured. Their language is the text's."""
        return [VoiceInfo(f"openai:{voice}", "mul", self.provider, PCM_RATE) for voice in self._options.voices]

    def speak(self, text: str, voice: str) -> AsyncGenerator[SpeechChunk, None]:
        """See `Synthesizer.speak`."""
        return self.stream(GrowingText.whole(text), voice)

    def stream(self, text: GrowingText, voice: str) -> AsyncGenerator[SpeechChunk, None]:
        """See `RemoteSynthesizer.stream`. A sentence is asked for again only as long as nothing of it was heard."""
        return in_turn(text, lambda sentence: self._sentence(sentence, voice), PAUSE_MS)

    async def _sentence(self, sentence: str, voice: str) -> AsyncGenerator[SpeechChunk, None]:
        words = _Words(sentence + " ", self._letter_s.get(voice, LETTER_S))
        sound = SoundReader()
        for wait_s in (*BACKOFF_S, None):
            try:
                async with self._answer(sentence, voice) as answer:
                    async for block in answer.aiter_bytes():
                        pcm = sound.feed(block)
                        for chunk in pieces(pcm, sound.rate, words.due(len(pcm) // 2, sound.rate)):
                            yield chunk
                        if sound.samples > SENTENCE_S * sound.rate:
                            raise ProblemError(ErrorCode.TTS_FAILED, "openai: the sound of one sentence does not end.")
                break
            except httpx.TimeoutException:
                raise silent("openai", self._options.answer_s) from None
            except (httpx.HTTPError, _PassingError) as error:
                refusal = error.refusal if isinstance(error, _PassingError) else None
                reason = refusal.word or refusal.status if refusal else type(error).__name__
                _log.warning("voice request failed", extra={"provider": self.provider, "reason": reason})
                if sound.samples or wait_s is None:
                    raise self._given_up(refusal) from None
                await asyncio.sleep(wait_s)
            except WaveError as error:
                text = f"openai: the answer is no sound we know ({error}): set OPENAI_TTS_FORMAT to pcm or wav."
                raise ProblemError(ErrorCode.TTS_FAILED, text) from None
        letters = sum(c.isalnum() for c in sentence)
        if letters and sound.samples:
            self._letter_s[voice] = sound.samples / sound.rate / letters
        for chunk in pieces(b"", sound.rate, words.rest()):
            yield chunk

    @asynccontextmanager
    async def _answer(self, sentence: str, voice: str) -> AsyncIterator[httpx.Response]:
        """Raises ProblemError for a refusal that stays, _PassingError for one that may not."""
        options, name = self._options, voice.partition(":")[2]
        if self._http is None:
            raise ProblemError(ErrorCode.TTS_FAILED, "The speech service is shutting down.")
        body = {"model": options.model, "input": sentence, "voice": name, "response_format": options.sound}
        async with self._http.stream("POST", "audio/speech", json=body) as answer:
            if answer.is_success:
                yield answer
                return
            refusal = Refusal("openai", voice, word_of(await _start(answer)), answer.status_code)
        if refusal.passing:
            raise _PassingError(refusal)
        raise refusal.problem("OPENAI_API_KEY")

    def _given_up(self, refusal: Refusal | None) -> ProblemError:
        return refusal.problem("OPENAI_API_KEY") if refusal else unreachable("openai")


class _PassingError(Exception):
    """A refusal that may be gone the next time."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self.refusal = refusal


class _Words:
    """The words of a sentence whose sound is not known to its end: where they probably lie."""

    def __init__(self, sentence: str, letter_s: float) -> None:
        self._sentence = sentence
        self._letter_s = letter_s
        self._waiting: list[CaptionWord] | None = None
        self._at = 0

    def due(self, samples: int, rate: int) -> tuple[CaptionWord, ...]:
        """Those that begin in the next `samples`."""
        if self._waiting is None:
            letters = sum(c.isalnum() for c in self._sentence)
            self._waiting = list(spread(self._sentence, 0, round(letters * self._letter_s * rate)))
        self._at += samples
        due = tuple(word for word in self._waiting if word.start < self._at)
        del self._waiting[: len(due)]
        return due

    def rest(self) -> tuple[CaptionWord, ...]:
        """Those that were said sooner than was thought."""
        waiting, self._waiting = self._waiting or [], []
        return tuple(CaptionWord(text=word.text, start=self._at, end=self._at) for word in waiting)


async def _start(answer: httpx.Response) -> bytes:
    """The beginning of an error's body."""
    body = b""
    async for block in answer.aiter_bytes():
        body += block
        if len(body) > _ERROR_BYTES:
            break
    return body[:_ERROR_BYTES]
