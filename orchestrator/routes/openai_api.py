"""`POST /v1/audio/speech` and `GET /v1/models`: the voices for any client that speaks OpenAI's dialect."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from musetalk_agent.resample import Resampler
from orchestrator.routes.context import Ctx
from orchestrator.tts.synthesizer import SpeechChunk

MODEL = "musetalk"
PCM_RATE = 24_000
"""Hz: OpenAI's `pcm` is int16 little endian mono at this rate."""
MAX_INPUT = 4096
"""Characters, as OpenAI has it."""
_OPENAI_VOICES = frozenset(
    {"default", "alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse"}
)
"""Voices that clients name by default: they get the deployment's default voice."""
router = APIRouter(tags=["speech"])


class SpeechRequest(BaseModel):
    """OpenAI's request; fields that change nothing here are accepted and ignored, as its other servers do."""

    input: str = Field(min_length=1, max_length=MAX_INPUT)
    model: str = MODEL
    voice: str = "default"
    response_format: Literal["pcm", "wav"] = "wav"
    stream_format: str = "audio"


@router.post("/v1/audio/speech", response_class=StreamingResponse)
async def speech(body: SpeechRequest, ctx: Ctx) -> Response:
    """Speaks `input`. `pcm` is sent while it is made; `wav` once it is whole, so that its header holds its length.

    `pcm` with `stream_format` `sse` comes as OpenAI's events; each has the `words` too whose sound begins in it, with seconds
    from the first sample.
    """
    await ctx.voices.wait_open()
    voice = ctx.sessions.options.voice if body.voice in _OPENAI_VOICES else body.voice
    chunks = ctx.voices.speak(body.input, voice)
    if (body.response_format, body.stream_format) == ("pcm", "sse"):
        events = _events(chunks)
        begun = await anext(events)  # what fails at once is answered with its status
        return StreamingResponse(_after(begun, events), media_type="text/event-stream")
    pcm = _resampled(chunks)
    if body.response_format == "pcm":
        first = await anext(pcm, b"")  # what fails at once is answered with its status
        return StreamingResponse(_after(first, pcm), media_type="audio/pcm")
    return Response(_wav(b"".join([part async for part in pcm])), media_type="audio/wav")


@router.get("/v1/models")
async def models(ctx: Ctx) -> dict[str, Any]:
    """One model; `voice` chooses what it sounds like, see `GET /voices`."""
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "musetalk-livekit"}]}


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


async def _resampled(chunks: AsyncGenerator[SpeechChunk, None]) -> AsyncGenerator[bytes, None]:
    """PCM at `PCM_RATE`. Closing it closes the voice."""
    resampler: Resampler | None = None
    try:
        async for chunk in chunks:
            resampler = resampler or Resampler(chunk.sample_rate, PCM_RATE)
            made = resampler.push(np.frombuffer(chunk.pcm, np.int16))
            if len(made):
                yield made.tobytes()
        if resampler is not None:
            yield resampler.flush().tobytes()
    finally:
        await chunks.aclose()


async def _events(chunks: AsyncGenerator[SpeechChunk, None]) -> AsyncGenerator[bytes, None]:
    """OpenAI's `speech.audio.delta` and `speech.audio.done`. Closing it closes the voice."""
    resampler: Resampler | None = None
    async with aclosing(chunks):
        async for chunk in chunks:
            resampler = resampler or Resampler(chunk.sample_rate, PCM_RATE)
            words = [
                {
                    "text": word.text,
                    "start": round(word.start / chunk.sample_rate, 4),
                    "end": round(word.end / chunk.sample_rate, 4),
                }
                for word in chunk.words
            ]
            yield _delta(resampler.push(np.frombuffer(chunk.pcm, np.int16)).tobytes(), words)
    if resampler is not None:
        yield _delta(resampler.flush().tobytes(), [])
    yield b'data: {"type": "speech.audio.done"}\n\n'


def _delta(pcm: bytes, words: list[dict[str, Any]]) -> bytes:
    event = {"type": "speech.audio.delta", "audio": base64.b64encode(pcm).decode(), "words": words}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _wav(pcm: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(PCM_RATE)
        writer.writeframes(pcm)
    return file.getvalue()
