"""Voices behind `POST /v1/audio/speech`: OpenAI's, and those of the many servers that speak the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import httpx

from musetalk_agent.protocol.messages import CaptionWord
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.retries import VOICE, Schedule, Tries, retry_after_s
from orchestrator.tts.lexicon import respelled
from orchestrator.tts.pcm_stream import PCM_RATE, PcmStreamDecoder, WaveError
from orchestrator.tts.segmentation import GrowingText, spread
from orchestrator.tts.synthesizer import (
    ANSWER_S,
    CONNECT_S,
    NO_SOUND,
    PLAIN,
    Patience,
    ProviderError,
    SpeechChunk,
    SpeechOptions,
    VoiceInfo,
    pieces,
    silent,
    speak_sentences,
    unreachable,
    word_of,
)

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
    schedule: Schedule = VOICE


class OpenAISpeech:
    """`RemoteSynthesizer` of the voices `openai:NAME`."""

    provider = "openai"

    def __init__(self, options: OpenAIOptions) -> None:
        self._options = options
        self._http: httpx.AsyncClient | None = None
        self._letter_s: dict[str, float] = {}

    async def open(self) -> None:
        """Makes the client; nothing is sent."""
        # What is unpacked has no bound that a server keeps to.
        headers = {"Accept-Encoding": "identity"}
        if self._options.api_key:
            headers["Authorization"] = f"Bearer {self._options.api_key}"
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

    def speak(self, text: str, voice: str, options: SpeechOptions = PLAIN) -> AsyncGenerator[SpeechChunk, None]:
        """See `Synthesizer.speak`."""
        return self.stream(GrowingText.whole(text), voice, options)

    def stream(
        self, text: GrowingText, voice: str, options: SpeechOptions = PLAIN
    ) -> AsyncGenerator[SpeechChunk, None]:
        """See `RemoteSynthesizer.stream`. A sentence is asked for again only as long as nothing of it was heard."""
        return speak_sentences(text, lambda sentence: self._sentence(sentence, voice, options), options, PAUSE_MS)

    async def _sentence(self, sentence: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        words = _Words(sentence + " ", self._letter_s.get(voice, LETTER_S) / options.speed)
        tries, samples, rate = Tries(self._options.schedule), 0, PCM_RATE
        while True:
            try:
                async with (
                    self._answer(respelled(sentence, "mul", options.lexicons), voice, options.speed) as answer,
                    aclosing(self._sound(answer)) as blocks,
                ):
                    async for pcm, rate in blocks:
                        samples += len(pcm) // 2
                        for chunk in pieces(pcm, rate, words.due(len(pcm) // 2, rate)):
                            yield chunk
                if samples:
                    break
                failure: Exception = _PassingError(ProviderError("openai", voice, NO_SOUND))
            except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
                raise silent("openai", self._options.answer_s) from None
            except httpx.PoolTimeout:
                text = f"openai: {CONNECTIONS} sentences are spoken already: try again."
                raise ProblemError(ErrorCode.TTS_FAILED, text, limit=CONNECTIONS, retry_after_s=1) from None
            except (httpx.HTTPError, _PassingError) as error:
                failure = error
            except WaveError as error:
                text = f"openai: the answer is no sound we know ({error}): set OPENAI_TTS_FORMAT to pcm or wav."
                raise ProblemError(ErrorCode.TTS_FAILED, text) from None
            refusal = failure.refusal if isinstance(failure, _PassingError) else None
            reason = refusal.word or refusal.status if refusal else type(failure).__name__
            _log.warning("voice request failed", extra={"provider": self.provider, "reason": reason})
            wait_s = None if samples else tries.next_wait_s(refusal.retry_after_s if refusal else None)
            if wait_s is None:
                raise refusal.problem("OPENAI_API_KEY") if refusal else unreachable("openai")
            await asyncio.sleep(wait_s)
        letters = sum(c.isalnum() for c in sentence)
        if letters and options.speed == 1:
            self._letter_s[voice] = samples / rate / letters
        for chunk in pieces(b"", rate, words.rest()):
            yield chunk

    async def _sound(self, answer: httpx.Response) -> AsyncGenerator[tuple[bytes, int], None]:
        """The answer's PCM and its rate, as it comes; nothing for an empty one. Raises WaveError, TimeoutError, httpx.HTTPError."""
        loop, patience = asyncio.get_running_loop(), Patience(self._options.answer_s)
        sound, empty = PcmStreamDecoder(answer.headers.get("content-type", "")), True
        blocks = answer.aiter_raw()
        while True:
            began = loop.time()
            async with asyncio.timeout(patience.left_s):
                block = await anext(blocks, None)
            patience.waited(loop.time() - began)
            empty = empty and not block
            pcm = sound.feed(block) if block is not None else b"" if empty else sound.finish()
            patience.heard(len(pcm) / 2 / sound.rate)
            if pcm:
                yield pcm, sound.rate
            if block is None:
                return
            if sound.samples > SENTENCE_S * sound.rate:
                raise ProblemError(ErrorCode.TTS_FAILED, "openai: the sound of one sentence does not end.")

    @asynccontextmanager
    async def _answer(self, sentence: str, voice: str, speed: float) -> AsyncIterator[httpx.Response]:
        """Raises ProblemError for a refusal that stays, _PassingError for one that may not, WaveError for sound that is packed."""
        options, name = self._options, voice.partition(":")[2]
        if self._http is None:
            raise ProblemError(ErrorCode.TTS_FAILED, "The speech service is shutting down.")
        body: dict[str, object] = {
            "model": options.model,
            "input": sentence,
            "voice": name,
            "response_format": options.sound,
        }
        if speed != 1:
            body["speed"] = speed
        request = self._http.build_request("POST", "audio/speech", json=body)
        async with asyncio.timeout(options.answer_s):  # a head that trickles outlasts the client's own timeouts
            answer = await self._http.send(request, stream=True)
        try:
            if answer.is_success:
                packing = answer.headers.get("content-encoding", "identity")
                if packing != "identity":
                    raise WaveError(f"its Content-Encoding is {packing[:60]!r}, which was not asked for")
                yield answer
                return
            async with asyncio.timeout(options.answer_s):
                word = word_of(await _start(answer))
        finally:
            await answer.aclose()
        asked_s = retry_after_s(answer.headers.get("retry-after"))
        refusal = ProviderError("openai", voice, word, answer.status_code, asked_s)
        if refusal.passing:
            raise _PassingError(refusal)
        raise refusal.problem("OPENAI_API_KEY")


class _PassingError(Exception):
    """A refusal that may be gone the next time."""

    def __init__(self, refusal: ProviderError) -> None:
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
    async for block in answer.aiter_raw():
        body += block
        if len(body) > _ERROR_BYTES:
            break
    return body[:_ERROR_BYTES]
