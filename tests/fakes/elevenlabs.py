"""A stand-in for ElevenLabs' WebSocket: its addresses, headers, messages and errors, with speech in which letters can be read.

A letter sounds for `letter_ms` as samples of its code point times ten, so that `letters` reads back what was heard.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

KEY = "eleven-key-of-the-tests"
INACTIVE = (
    "Have not received a new text input within the timeout of {} seconds. Streaming input terminated. Please make sure to "
    'either feed the input in the timely manner, or to send the end of input text (empty string "") when done.'
)


@dataclass
class Call:
    """One connection: the voice and query of its address, and what it was sent."""

    voice: str
    query: dict[str, str]
    texts: list[str] = field(default_factory=list)
    spoken: str = ""
    closed: bool = False


@dataclass
class FakeElevenLabs:
    """What it does wrong is set for each connection in turn: `drops` are letters after which it is cut off, `errors` the provider's
    word instead of sound, `refusals` HTTP answers instead of a connection.
    """

    first_byte_s: float = 0.0
    letter_ms: int = 20
    message_letters: int = 7
    aligned: bool = True
    mute: bool = False
    tone: bool = False
    inactivity_s: float | None = None
    drops: list[int | None] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, Any]] | None] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # of refusals
    calls: list[Call] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its address."""
        async with serve(self._talk, "127.0.0.1", 0, process_request=self._greet, compression=None) as server:
            yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"

    def _greet(self, connection: ServerConnection, request: Request) -> Response | None:
        refusal = self.refusals.pop(0) if self.refusals else None
        if request.headers.get("xi-api-key") != KEY:
            refusal = (401, {"detail": {"status": "invalid_api_key", "message": "Invalid API key"}})
        if refusal is None:
            return None
        answer = connection.respond(HTTPStatus(refusal[0]), json.dumps(refusal[1]))
        for name, value in self.headers.items():
            answer.headers[name] = value
        return answer

    async def _talk(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        address = urlsplit(connection.request.path)
        *_, voice, last = address.path.split("/")
        assert address.path.startswith("/v1/text-to-speech/") and last == "stream-input"
        call = Call(voice, {name: values[0] for name, values in parse_qs(address.query).items()})
        self.calls.append(call)
        drop = self.drops.pop(0) if self.drops else None
        try:
            await self._answer(connection, call, drop)
        except ConnectionClosed:
            pass
        finally:
            call.closed = True

    async def _answer(self, connection: ServerConnection, call: Call, drop: int | None) -> None:
        limit = self.inactivity_s or float(call.query["inactivity_timeout"])
        begun = False
        while True:
            try:
                async with asyncio.timeout(limit):
                    text = json.loads(await connection.recv())["text"]
            except TimeoutError:
                await self._fail(connection, "input_timeout_exceeded", INACTIVE.format(limit))
                return
            call.texts.append(text)
            assert len(call.texts) > 1 or text == " ", "the first message is a blank"
            if text == "":
                break
            if not text.strip() or self.mute:
                continue
            assert text.endswith(" "), "text ends with a blank"
            error = self.errors.pop(0) if self.errors else None
            if error is not None:
                await self._fail(connection, error, "No.")
                return
            if not begun:
                begun = True
                await asyncio.sleep(self.first_byte_s)
                self.first_bytes.append(asyncio.get_running_loop().time())
            if not await self._say(connection, call, text, drop):
                return
        if not self.mute:
            await connection.send(
                json.dumps({"audio": None, "isFinal": True, "normalizedAlignment": None, "alignment": None})
            )
            await connection.close()
        else:
            await connection.wait_closed()

    async def _say(self, connection: ServerConnection, call: Call, text: str, drop: int | None) -> bool:
        rate = int(call.query["output_format"].removeprefix("pcm_"))
        for chars in _batched(text, self.message_letters):
            if drop is not None and len(call.spoken) + len(chars) > drop:
                connection.transport.abort()
                return False
            call.spoken += "".join(chars)
            times = [self.letter_ms * n for n in range(len(chars))]
            reported = {
                "chars": list(chars),
                "charStartTimesMs": times,
                "charDurationsMs": [self.letter_ms] * len(chars),
            }
            message = {
                "audio": base64.b64encode(self._sound("".join(chars), rate)).decode(),
                "isFinal": None,
                "normalizedAlignment": reported if self.aligned else None,
                "alignment": reported if self.aligned else None,
            }
            await connection.send(json.dumps(message))
        return True

    def _sound(self, chars: str, rate: int) -> bytes:
        samples = rate * self.letter_ms // 1000
        if self.tone:
            at = np.arange(samples * len(chars))
            return (12000 * np.sin(2 * np.pi * 440 * at / rate)).astype("<i2").tobytes()
        return np.repeat([10 * ord(char) for char in chars], samples).astype("<i2").tobytes()

    async def _fail(self, connection: ServerConnection, word: str, message: str) -> None:
        await connection.send(json.dumps({"message": message, "error": word, "code": 1008}))
        await connection.close(1008, message[:120])


def _batched(text: str, size: int) -> list[tuple[str, ...]]:
    return [tuple(text[at : at + size]) for at in range(0, len(text), size)]


def letters(pcm: bytes, rate: int, letter_ms: int = 20) -> str:
    """What was heard."""
    samples = np.frombuffer(pcm, "<i2")[rate * letter_ms // 2000 :: rate * letter_ms // 1000]
    return "".join(chr(int(sample) // 10) for sample in samples)
