"""ElevenLabs, by its WebSocket: text goes in sentence by sentence, audio comes back with the time of every letter.

`AlignmentTracker` turns those letters into words and says which part of the text was spoken.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from musetalk_agent.protocol.messages import CaptionWord
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.retries import VOICE, Schedule, Tries, retry_after_s
from orchestrator.tts import pauses
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import (
    ANSWER_S,
    CONNECT_S,
    PLAIN,
    Patience,
    ProviderError,
    SpeechChunk,
    SpeechOptions,
    VoiceInfo,
    pieces,
    silent,
    unreachable,
    word_of,
)

_WIDE = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_UNIT = re.compile(rf"(?:{_WIDE}[^\s\w]*|(?:(?!{_WIDE})\S)+)\s*")
"""A word with the space after it; a character of scripts that write words without spaces."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A character as it sounds: milliseconds from the beginning of the sound it came with."""

    char: str
    start_ms: float
    length_ms: float


@dataclass(frozen=True, slots=True)
class _Unit:
    """A word, and how many letters of the whole text there are up to its end."""

    text: str
    end: int


class AlignmentTracker:
    """One utterance over all connections that it takes. Samples count from its beginning."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.given = 0
        """Samples handed out."""
        self._units: deque[_Unit] = deque()
        self._letters = 0
        self._behind = 0  # letters up to the last whole word
        self._timed = 0
        self._word_at: int | None = None
        self._word_end = 0
        self._held = bytearray()
        self._blind = False
        self._has_letters = False

    def add(self, sentence: str) -> None:
        """More text to be read, after what is there."""
        for unit in _UNIT.findall(sentence.strip() + " "):
            self._letters += len(unit.rstrip())
            self._units.append(_Unit(unit, self._letters))

    @property
    def unread(self) -> str:
        """The words of which nothing has been handed out."""
        return "".join(unit.text for unit in self._units).strip()

    @property
    def ahead(self) -> int:
        """Letters that are to be read; 0 where the provider sends no alignment."""
        return 0 if self._blind else self._letters - self._behind

    @property
    def letters(self) -> int:
        """Letters of the text so far."""
        return self._letters

    @property
    def held(self) -> int:
        """Samples that wait for the end of their word."""
        return len(self._held) // 2

    @property
    def blind(self) -> bool:
        """Whether the provider sends no alignment."""
        return self._blind

    @property
    def resumable(self) -> bool:
        """Whether it is known where to go on."""
        return not (self._blind and self.given)

    def hear(self, pcm: bytes, letters: Iterable[Letter] | None) -> tuple[bytes, tuple[CaptionWord, ...]]:
        """Sound that came, with its letters if it has them. Returns what may be heard now, and the words that begin in it."""
        begin = self.given + len(self._held) // 2
        self._held += pcm
        self._blind = letters is None and not self._has_letters if pcm else self._blind
        self._has_letters = self._has_letters or letters is not None
        words: list[CaptionWord] = []
        for letter in letters or ():
            if letter.char.isspace():
                self._settle(words)
                continue
            at = begin + round(letter.start_ms * self.sample_rate / 1000)
            self._word_at = at if self._word_at is None else self._word_at
            self._word_end = at + round(letter.length_ms * self.sample_rate / 1000)
            self._timed += 1
            if self._units and self._timed >= self._units[0].end:
                self._whole(words)
        whole = self._word_at is None
        samples = len(self._held) // 2 if whole else max(0, (self._word_at or 0) - self.given)
        return self._give(samples), tuple(words)

    def broken(self) -> None:
        """The connection is gone. What had not been handed out will be read again by the next one."""
        self._held.clear()
        self._timed, self._word_at = self._behind, None

    def finish(self) -> tuple[bytes, tuple[CaptionWord, ...]]:
        """Everything was read: the rest, and the words without an alignment."""
        pcm = self._give(len(self._held) // 2)
        words = tuple(CaptionWord(text=unit.text, start=self.given, end=self.given) for unit in self._units)
        self._units.clear()
        self._behind = self._timed = self._letters
        return pcm, words

    def _settle(self, words: list[CaptionWord]) -> None:
        """A space: words that were counted apart, by a letter more or less, meet again here."""
        if self._word_at is None or not self._units:
            return
        if self._units[0].end - self._timed <= self._timed - self._behind:
            self._whole(words)
        else:
            self._timed, self._word_at = self._behind, None

    def _whole(self, words: list[CaptionWord]) -> None:
        unit = self._units.popleft()
        start = self._word_at if self._word_at is not None else self._word_end
        words.append(CaptionWord(text=unit.text, start=start, end=self._word_end))
        self._behind = self._timed = unit.end
        self._word_at = None

    def _give(self, samples: int) -> bytes:
        pcm = bytes(self._held[: 2 * samples])
        del self._held[: 2 * samples]
        self.given += len(pcm) // 2
        return pcm


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
UNTIMED_LETTERS = 24
"""The provider may count letters a little differently: of so few it is unknown whether they were read."""
SPEEDS = (0.7, 1.2)
"""The slowest and the fastest that the provider speaks."""
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

    def speak(self, text: str, voice: str, options: SpeechOptions = PLAIN) -> AsyncGenerator[SpeechChunk, None]:
        """See `Synthesizer.speak`."""
        return self.stream(GrowingText.whole(text), voice, options)

    async def stream(
        self, text: GrowingText, voice: str, options: SpeechOptions = PLAIN
    ) -> AsyncGenerator[SpeechChunk, None]:
        """See `RemoteSynthesizer.stream`. Goes on over connections that break, with the word after the last that was heard."""
        recital = AlignmentTracker(self._options.sample_rate)
        tries, position, begun = Tries(self._options.schedule), 0, False
        try:
            while True:
                if begun and not recital.unread and not await _more(text, recital):
                    break
                try:
                    async with self._connection(voice) as socket:
                        reading = _Reading(socket, text, recital, self._options.answer_s, options.speed)
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

    def __init__(
        self, socket: ClientConnection, text: GrowingText, recital: AlignmentTracker, answer_s: float, speed: float
    ) -> None:
        self._socket = socket
        self._speed = min(max(speed, SPEEDS[0]), SPEEDS[1])
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
            await self._greet()
            if self._recital.unread:
                await self._send_text(self._recital.unread + " ")
            while True:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        sentence = await self._next()
                except TimeoutError:
                    await self._send_text(" ")
                    continue
                if sentence is None:
                    break
                self._recital.add(sentence)
                await self._send_text(sentence + " ")
            self._ended = True
            await self._send_text("")

    async def _greet(self) -> None:
        """The first message of a connection, which alone may hold settings."""
        settings = {} if self._speed == 1 else {"voice_settings": {"speed": self._speed}}
        await self._socket.send(json.dumps({"text": " ", **settings}))

    async def _next(self) -> str | None:
        """The next sentence, once the provider has not too much to read. Cancelling loses nothing."""
        while self._recital.ahead > AHEAD_LETTERS:
            self._room.clear()
            await self._room.wait()
        return await _sentence(self._text)

    async def _send_text(self, text: str) -> None:
        self._unheard = self._unheard or bool(text.strip())
        await self._socket.send(json.dumps({"text": text}))

    @property
    def _owed(self) -> bool:
        """Whether the provider has something to say, as far as it can be known."""
        if self._ended or self._recital.blind:
            return self._ended or self._unheard
        return self._recital.ahead > (0 if self._unheard else UNTIMED_LETTERS)

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
    """The sound of a message, and its letters where it has them."""
    try:
        pcm = base64.b64decode(message.get("audio") or "", validate=True)
        alignment = message.get("alignment")
        if not alignment:
            return pcm, None
        chars, starts = alignment["chars"], alignment["charStartTimesMs"]
        lengths = alignment.get("charDurationsMs") or alignment["charsDurationsMs"]
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
    """Why the provider closed, where its reason says so."""
    text = closed.rcvd.reason.lower() if closed.rcvd else ""
    for phrase, word in (
        ("api key", "invalid_api_key"),
        ("quota", "quota_exceeded"),
        ("timeout of", "input_timeout_exceeded"),
    ):
        if phrase in text:
            return replace(said, word=word)
    return None


async def _sentence(text: GrowingText) -> str | None:
    """The next sentence; its pauses are left out, for the voice gives no place in its audio where they would be."""
    while (sentence := await text.next()) is not None:
        if spoken := pauses.without(sentence):
            return spoken
    return None


async def _more(text: GrowingText, recital: AlignmentTracker) -> bool:
    """Waits for more to read. False: there is none."""
    sentence = await _sentence(text)
    if sentence is not None:
        recital.add(sentence)
    return sentence is not None
