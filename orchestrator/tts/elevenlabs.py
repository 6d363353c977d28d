"""ElevenLabs, by its WebSocket: text goes in sentence by sentence, sound comes back with the time of every letter."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.retries import VOICE, Schedule, Tries, retry_after_s
from orchestrator.tts.alignment import AlignmentTracker, Letter
from orchestrator.tts.remote import ANSWER_S, CONNECT_S, Patience, ProviderError, silent, unreachable, word_of
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import SpeechChunk, VoiceInfo, pieces

_log = logging.getLogger(__name__)
_wire_log = logging.getLogger(f"{__name__}.wire")
_wire_log.setLevel(logging.WARNING)  # below it the library writes down headers, with our key, and what is said
ELEVENLABS_URL = "wss://api.elevenlabs.io"
INACTIVITY_S = 60
"""The provider closes a connection that brings no text for so long."""
KEEP_ALIVE_S = 10.0
"""A blank is sent this often while the text pauses."""
AHEAD_LETTERS = 800
"""Letters that the provider is given before it has read them: a minute of speech."""
MESSAGE_BYTES = 4 << 20
"""A message of the provider: 60 s of sound at most."""
UNTOLD_LETTERS = 24
"""The provider may count letters a little differently: of so few nobody knows whether they were read."""
HELD_S = 30.0
"""Longest sound of one word."""
LETTER_S, BEGINNING_S = 1.0, 30.0
"""A text's sound is at most so long: fifteen times what letters take."""
_LETTER_MS = 3_600_000.0
_LETTER_CHARACTERS = 16
_IDLED = frozenset({"input_timeout_exceeded"})


@dataclass(frozen=True)
class ElevenLabsOptions:
    """`voices` are listed; any other works as well. `base_url` may be that of another region."""

    api_key: str = field(repr=False)
    voices: tuple[str, ...] = ()
    model: str = "eleven_flash_v2_5"
    sample_rate: int = 24000
    base_url: str = ELEVENLABS_URL
    answer_s: float = ANSWER_S
    schedule: Schedule = VOICE


class _BrokenError(Exception):
    """The connection is gone before all was said; `refusal` when the provider said why."""

    def __init__(self, refusal: ProviderError | None = None) -> None:
        super().__init__()
        self.refusal = refusal


class ElevenLabs:
    """`RemoteSynthesizer` of the voices `elevenlabs:ID`."""

    provider = "elevenlabs"

    def __init__(self, options: ElevenLabsOptions) -> None:
        self._options = options
        self._closed = False

    async def open(self) -> None:
        """Nothing: connections are made for each utterance."""

    async def aclose(self) -> None:
        """Lets nothing begin any more; what speaks ends with its session."""
        self._closed = True

    def names(self) -> list[VoiceInfo]:
        """The voices that were configured. Their language is the text's."""
        rate = self._options.sample_rate
        return [VoiceInfo(f"elevenlabs:{voice}", "mul", self.provider, rate) for voice in self._options.voices]

    def speak(self, text: str, voice: str) -> AsyncGenerator[SpeechChunk, None]:
        """See `Synthesizer.speak`."""
        return self.stream(GrowingText.whole(text), voice)

    async def stream(self, text: GrowingText, voice: str) -> AsyncGenerator[SpeechChunk, None]:
        """See `RemoteSynthesizer.stream`. Goes on over connections that break, with the word after the last that was heard."""
        recital = AlignmentTracker(self._options.sample_rate)
        tries, position, begun = Tries(self._options.schedule), 0, False
        try:
            while True:
                if begun and not recital.unread and not await _more(text, recital):
                    break
                try:
                    async with self._connection(voice) as socket:
                        reading = _Reading(socket, text, recital, self._options.answer_s)
                        async with aclosing(reading.run()) as chunks:
                            async for chunk in chunks:
                                yield chunk
                    break
                except _BrokenError as broken:
                    if recital.given > position:
                        tries.succeeded()
                    begun, position = True, recital.given
                    wait_s = self._wait_s(broken.refusal, voice, recital, tries)
                recital.broken()
                await asyncio.sleep(wait_s)
            pcm, words = recital.finish()
            for chunk in pieces(pcm, recital.sample_rate, words):
                yield chunk
        finally:
            text.abandon()

    def _wait_s(self, refusal: ProviderError | None, voice: str, recital: AlignmentTracker, tries: Tries) -> float:
        """The wait before another connection. Raises ProblemError when another one would be of no use."""
        extra = {"provider": self.provider, "reason": refusal.word or refusal.status if refusal else "dropped"}
        _log.warning("voice connection broke", extra={**extra, "resumable": recital.resumable})
        passing = refusal is None or refusal.passing or refusal.word in _IDLED
        if passing and recital.resumable and not self._closed:
            wait_s = tries.next_wait_s(refusal.retry_after_s if refusal else None)
            if wait_s is not None:
                return wait_s
        raise refusal.problem("ELEVENLABS_API_KEY") if refusal else unreachable("ElevenLabs")

    @asynccontextmanager
    async def _connection(self, voice: str) -> AsyncIterator[ClientConnection]:
        """A connection that has been greeted. Raises _BrokenError, with what was said of it."""
        options, name = self._options, voice.partition(":")[2]
        query = {
            "model_id": options.model,
            "output_format": f"pcm_{options.sample_rate}",
            "inactivity_timeout": INACTIVITY_S,
            "sync_alignment": "true",
            "auto_mode": "true",
        }
        url = f"{options.base_url}/v1/text-to-speech/{quote(name, safe='')}/stream-input?{urlencode(query)}"
        said = ProviderError("ElevenLabs", voice)
        try:
            # Its own pings stay off: sound that waits to be heard is not read, and neither are the pongs behind it.
            async with connect(
                url,
                additional_headers={"xi-api-key": options.api_key},
                open_timeout=CONNECT_S,
                close_timeout=1,
                ping_interval=None,
                max_size=MESSAGE_BYTES,
                max_queue=8,
                compression=None,
                logger=_wire_log,
            ) as socket:
                try:
                    yield socket
                except ConnectionClosed as closed:
                    raise _BrokenError(_reason(closed, said)) from None
                except _BrokenError as broken:
                    raise _BrokenError(broken.refusal and replace(broken.refusal, voice=voice)) from None
        except InvalidStatus as refused:
            answer = refused.response
            asked_s = retry_after_s(answer.headers.get("Retry-After"))
            word, status = word_of(answer.body or b""), answer.status_code
            raise _BrokenError(replace(said, word=word, status=status, retry_after_s=asked_s)) from None
        except (OSError, TimeoutError, InvalidHandshake):
            raise _BrokenError from None


class _Reading:
    """What is said over one connection: what has not been read yet, and the text that comes."""

    def __init__(self, socket: ClientConnection, text: GrowingText, recital: AlignmentTracker, answer_s: float) -> None:
        self._socket = socket
        self._text = text
        self._recital = recital
        self._answer_s = answer_s
        self._patience = Patience(answer_s)
        self._unheard = False  # text was sent since the last sound
        self._ended = False  # and its end: the provider owes the rest, and its own end
        self._room = asyncio.Event()

    async def run(self) -> AsyncGenerator[SpeechChunk, None]:
        """Ends when the provider has said everything. Raises _BrokenError, ConnectionClosed, ProblemError `voice_timeout`."""
        sender = asyncio.create_task(self._send(), name="elevenlabs-text")
        try:
            while not (message := await self._receive()).get("isFinal"):
                if message.get("error"):
                    raise _BrokenError(ProviderError("ElevenLabs", "", str(message["error"])[:100]))
                pcm, letters = _sound(message)
                self._unheard = self._unheard and not pcm
                self._patience.heard(len(pcm) / 2 / self._recital.sample_rate)
                pcm, words = self._recital.hear(pcm, letters)
                self._bound()
                for chunk in pieces(pcm, self._recital.sample_rate, words):
                    yield chunk
                self._room.set()
            if not self._ended:  # it ended by itself: another connection reads on
                raise _BrokenError
        finally:
            sender.cancel()
            await asyncio.wait([sender])

    def _bound(self) -> None:
        """Raises _BrokenError, ProblemError `tts_failed` for sound that no text has."""
        recital = self._recital
        if recital.held > HELD_S * recital.sample_rate:
            raise _BrokenError(ProviderError("ElevenLabs", "", "nonsense"))
        most_s = BEGINNING_S + LETTER_S * recital.letters
        if recital.given + recital.held > most_s * recital.sample_rate:
            text = f"ElevenLabs: the sound of {recital.letters} letters does not end after {most_s:g} s."
            raise ProblemError(ErrorCode.TTS_FAILED, text, limit=most_s)

    async def _send(self) -> None:
        with suppress(ConnectionClosed):  # the reader learns of it too
            await self._tell(" ")
            if self._recital.unread:
                await self._tell(self._recital.unread + " ")
            while True:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        sentence = await self._next()
                except TimeoutError:
                    await self._tell(" ")
                    continue
                if sentence is None:
                    break
                self._recital.add(sentence)
                await self._tell(sentence + " ")
            self._ended = True
            await self._tell("")

    async def _next(self) -> str | None:
        """The next sentence, once the provider has not too much to read. Cancelling loses nothing."""
        while self._recital.ahead > AHEAD_LETTERS:
            self._room.clear()
            await self._room.wait()
        return await self._text.next()

    async def _tell(self, text: str) -> None:
        self._unheard = self._unheard or bool(text.strip())
        await self._socket.send(json.dumps({"text": text}))

    @property
    def _owed(self) -> bool:
        """Whether the provider has something to say, as far as it can be known."""
        if self._ended or self._recital.blind:
            return self._ended or self._unheard
        return self._recital.ahead > (0 if self._unheard else UNTOLD_LETTERS)

    async def _receive(self) -> dict[str, Any]:
        """The next message. Raises ProblemError `voice_timeout` when no sound comes though some is owed, whatever else comes."""
        loop = asyncio.get_running_loop()
        while True:
            began, owed, parsed = loop.time(), self._owed, None
            tick_s = self._answer_s / 4  # sound may come to be owed meanwhile
            with suppress(TimeoutError):
                async with asyncio.timeout(min(tick_s, self._patience.left_s) if owed else tick_s):
                    parsed = _parsed(await self._socket.recv())
            if owed:
                self._patience.waited(loop.time() - began)
            said = parsed is not None and any(parsed.get(name) for name in ("audio", "isFinal", "error"))
            if owed and not said and self._patience.left_s <= 0:
                raise silent("ElevenLabs", self._answer_s)
            if parsed is not None:
                return parsed


def _parsed(message: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _BrokenError(ProviderError("ElevenLabs", "", "nonsense"))
    return value


def _sound(message: dict[str, Any]) -> tuple[bytes, list[Letter] | None]:
    """The sound of a message, and its letters where they are told."""
    try:
        pcm = base64.b64decode(message.get("audio") or "", validate=True)
        told = message.get("alignment")
        if not told:
            return pcm, None
        chars, starts = told["chars"], told["charStartTimesMs"]
        lengths = told.get("charDurationsMs") or told["charsDurationsMs"]
        return pcm, [_letter(char, at, ms) for char, at, ms in zip(chars, starts, lengths, strict=True)]
    except (AttributeError, binascii.Error, KeyError, OverflowError, TypeError, ValueError):
        raise _BrokenError(ProviderError("ElevenLabs", "", "nonsense")) from None


def _letter(char: object, at: Any, ms: Any) -> Letter:
    """Raises ValueError, TypeError, OverflowError for what cannot be a letter in a sound of an hour."""
    letter = Letter(str(char), float(at), float(ms))
    if not isinstance(char, str) or not 0 < len(char) <= _LETTER_CHARACTERS:
        raise ValueError("no letter")
    if not 0 <= letter.start_ms <= _LETTER_MS or not 0 <= letter.length_ms <= _LETTER_MS:  # nor NaN
        raise ValueError("no time")
    return letter


def _reason(closed: ConnectionClosed, said: ProviderError) -> ProviderError | None:
    """Why the provider closed, where its words tell."""
    text = closed.rcvd.reason.lower() if closed.rcvd else ""
    for phrase, word in (
        ("api key", "invalid_api_key"),
        ("quota", "quota_exceeded"),
        ("timeout of", "input_timeout_exceeded"),
    ):
        if phrase in text:
            return replace(said, word=word)
    return None


async def _more(text: GrowingText, recital: AlignmentTracker) -> bool:
    """Waits for more to read. False: there is none."""
    sentence = await text.next()
    if sentence is not None:
        recital.add(sentence)
    return sentence is not None
