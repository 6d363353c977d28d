"""ElevenLabs, by its WebSocket: text goes in sentence by sentence, sound comes back with the time of every letter."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from orchestrator.tts.base import SpeechChunk, VoiceInfo, pieces
from orchestrator.tts.recital import Letter, Recital
from orchestrator.tts.remote import ANSWER_S, BACKOFF_S, CONNECT_S, Refusal, silent, unreachable, word_of
from orchestrator.tts.sentences import GrowingText

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


class _BrokenError(Exception):
    """The connection is gone before all was said; `refusal` when the provider said why."""

    def __init__(self, refusal: Refusal | None = None) -> None:
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
        recital = Recital(self._options.sample_rate)
        tries, position = 0, 0
        try:
            while True:
                if tries and not recital.unread and not await _more(text, recital):
                    break
                try:
                    async with self._connection(voice) as socket:
                        reading = _Reading(socket, text, recital, self._options.answer_s)
                        async with aclosing(reading.run()) as chunks:
                            async for chunk in chunks:
                                yield chunk
                    break
                except _BrokenError as broken:
                    tries = 1 if recital.given > position else tries + 1
                    position = recital.given
                    self._check(broken.refusal, voice, recital, tries)
                recital.broken()
                await asyncio.sleep(BACKOFF_S[tries - 1])
            pcm, words = recital.finish()
            for chunk in pieces(pcm, recital.sample_rate, words):
                yield chunk
        finally:
            text.abandon()

    def _check(self, refusal: Refusal | None, voice: str, recital: Recital, tries: int) -> None:
        """Raises ProblemError when another connection would be of no use."""
        extra = {"provider": self.provider, "reason": refusal.word or refusal.status if refusal else "dropped"}
        _log.warning("voice connection broke", extra={**extra, "tries": tries, "resumable": recital.resumable})
        if refusal is not None and not refusal.passing and refusal.word not in _IDLED:
            raise refusal.problem("ELEVENLABS_API_KEY")
        if self._closed or tries > len(BACKOFF_S) or not recital.resumable:
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
        said = Refusal("ElevenLabs", voice)
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
                    raise _BrokenError(replace(broken.refusal or said, voice=voice)) from None
        except InvalidStatus as refused:
            answer = refused.response
            raise _BrokenError(replace(said, word=word_of(answer.body or b""), status=answer.status_code)) from None
        except (OSError, TimeoutError, InvalidHandshake):
            raise _BrokenError from None


class _Reading:
    """What is said over one connection: what has not been read yet, and the text that comes."""

    def __init__(self, socket: ClientConnection, text: GrowingText, recital: Recital, answer_s: float) -> None:
        self._socket = socket
        self._text = text
        self._recital = recital
        self._answer_s = answer_s
        self._owed_since: float | None = None
        self._room = asyncio.Event()

    async def run(self) -> AsyncGenerator[SpeechChunk, None]:
        """Ends when the provider has said everything. Raises _BrokenError, ConnectionClosed, ProblemError `voice_timeout`."""
        sender = asyncio.create_task(self._send(), name="elevenlabs-text")
        try:
            while not (message := await self._receive()).get("isFinal"):
                if message.get("error"):
                    raise _BrokenError(Refusal("ElevenLabs", "", str(message["error"])))
                pcm, letters = _sound(message)
                self._owed_since = None if pcm else self._owed_since
                pcm, words = self._recital.hear(pcm, letters)
                for chunk in pieces(pcm, self._recital.sample_rate, words):
                    yield chunk
                self._room.set()
        finally:
            sender.cancel()
            await asyncio.wait([sender])

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
            await self._tell("")

    async def _next(self) -> str | None:
        """The next sentence, once the provider has not too much to read. Cancelling loses nothing."""
        while self._recital.ahead > AHEAD_LETTERS:
            self._room.clear()
            await self._room.wait()
        return await self._text.next()

    async def _tell(self, text: str) -> None:
        if text != " ":
            self._owed_since = asyncio.get_running_loop().time()
        await self._socket.send(json.dumps({"text": text}))

    async def _receive(self) -> dict[str, Any]:
        while True:
            try:
                async with asyncio.timeout(self._answer_s / 3):
                    return _parsed(await self._socket.recv())
            except TimeoutError:
                waited = asyncio.get_running_loop().time() - (self._owed_since or math.inf)
                if waited > self._answer_s:
                    raise silent("ElevenLabs", self._answer_s) from None


def _parsed(message: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _BrokenError(Refusal("ElevenLabs", "", "nonsense"))
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
        return pcm, [Letter(str(c), float(at), float(ms)) for c, at, ms in zip(chars, starts, lengths, strict=True)]
    except (binascii.Error, KeyError, TypeError, ValueError):
        raise _BrokenError(Refusal("ElevenLabs", "", "nonsense")) from None


def _reason(closed: ConnectionClosed, said: Refusal) -> Refusal | None:
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


async def _more(text: GrowingText, recital: Recital) -> bool:
    """Waits for more to read. False: there is none."""
    sentence = await text.next()
    if sentence is not None:
        recital.add(sentence)
    return sentence is not None
