"""A stand-in for `POST /v1/audio/speech`: OpenAI's request, its chunked sound, and its errors."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "openai-key-of-the-tests"
RATE = 24000


@dataclass
class FakeOpenAI:
    """Says each letter as `letter_ms` of samples of its code point times ten. `refusals` are answers instead, one a request;
    `cut_after` breaks a body off after so many bytes, one a request; `mute` sends headers and no sound; `pace_s` is waited before
    each block; `flood` repeats the sound for ever; `media_type` and `headers` are those of the answers instead of the right ones.
    """

    first_byte_s: float = 0.0
    letter_ms: int = 20
    block_bytes: int = 1001
    mute: bool = False
    tone: bool = False
    wav_rate: int = 16000
    junk: bytes | None = None
    media_type: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    pace_s: float = 0.0
    flood: bool = False
    refusals: list[tuple[int, dict[str, Any]] | None] = field(default_factory=list)
    cut_after: list[int | None] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    ended: int = 0
    asked_at: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)

    @property
    def app(self) -> Starlette:
        """The server."""
        return Starlette(routes=[Route("/v1/audio/speech", self._speech, methods=["POST"])])

    async def _speech(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse(error("invalid_api_key", "Incorrect API key provided: sk-***."), 401)
        try:
            body = await request.json()
        except ClientDisconnect:
            return Response(status_code=400)
        self.bodies.append(body)
        self.asked_at.append(asyncio.get_running_loop().time())
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            return JSONResponse(refusal[1], refusal[0], self.headers)
        assert body.keys() == {"model", "input", "voice", "response_format"}
        assert 0 < len(body["input"]) <= 4096
        wav = body["response_format"] == "wav"
        rate = self.wav_rate if wav else RATE
        sound = (header(rate) if wav else b"") + self._sound(body["input"], rate)
        cut = self.cut_after.pop(0) if self.cut_after else None
        media_type = self.media_type or ("audio/wav" if wav else "audio/pcm")
        body = self._stream(sound if self.junk is None else self.junk, cut)
        return StreamingResponse(body, media_type=media_type, headers=self.headers)

    async def _stream(self, sound: bytes, cut: int | None) -> AsyncIterator[bytes]:
        try:
            await asyncio.sleep(self.first_byte_s)
            self.first_bytes.append(asyncio.get_running_loop().time())
            if self.mute:
                await asyncio.Event().wait()
            for at in range(0, len(sound), self.block_bytes):
                if cut is not None and at >= cut:
                    raise RuntimeError("the server breaks")
                await asyncio.sleep(self.pace_s)
                yield sound[at : at + self.block_bytes]
            while self.flood:
                yield sound
                await asyncio.sleep(
                    0
                )  # a server that has lost its client no longer waits in the sending, nor notices a cancel
        finally:
            self.ended += 1

    def _sound(self, text: str, rate: int) -> bytes:
        samples = rate * self.letter_ms // 1000
        if self.tone:
            at = np.arange(samples * len(text))
            return (12000 * np.sin(2 * np.pi * 440 * at / rate)).astype("<i2").tobytes()
        return np.repeat([10 * ord(char) for char in text], samples).astype("<i2").tobytes()


def header(rate: int, channels: int = 1) -> bytes:
    """That of a WAV file whose length is not known, with a chunk that nobody needs."""
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"LIST" + struct.pack("<I", 4) + b"INFO"
    return b"RIFF\xff\xff\xff\xffWAVE" + chunks + b"data\xff\xff\xff\xff"


def error(code: str, message: str = "No.", kind: str = "invalid_request_error") -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
