"""`POST /v1/audio/speech` and `GET /v1/models`: the voices for any client that speaks OpenAI's dialect."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.routes.context import Ctx
from orchestrator.routes.error_responses import openai_error
from orchestrator.tts.encoding import EncodedFormat, EncodedSpeech, encoded
from orchestrator.tts.lexicon import LexiconEntry
from orchestrator.tts.speech_settings import LEXICON_ENTRIES, VOICE_CHARACTERS, SpeechSettings
from orchestrator.tts.synthesizer import FASTEST_SPEED, SLOWEST_SPEED

MODEL = "musetalk"
MAX_INPUT = 4096
"""Characters, as OpenAI has it."""
_OPENAI_VOICES = frozenset(
    {"default", "alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse"}
)
"""Voices that clients name by default: they get the deployment's default voice."""
router = APIRouter(tags=["speech"])
_log = logging.getLogger(__name__)


class SpeechRequest(BaseModel):
    """OpenAI's request; fields that change nothing here (`instructions`) are accepted and ignored, as its other servers do."""

    input: str = Field(min_length=1, max_length=MAX_INPUT)
    model: str = MODEL
    voice: str = Field(default="default", min_length=1, max_length=VOICE_CHARACTERS)
    response_format: EncodedFormat = EncodedFormat.WAV
    speed: float = Field(default=1.0, ge=SLOWEST_SPEED, le=FASTEST_SPEED)
    lexicon: tuple[LexiconEntry, ...] | None = Field(default=None, max_length=LEXICON_ENTRIES)
    stream_format: Literal["audio", "sse"] = "audio"


@router.post("/v1/audio/speech", response_class=StreamingResponse)
async def speech(body: SpeechRequest, ctx: Ctx) -> Response:
    """Speaks `input`, and sends it while it is made; `wav` once it is whole, so that its header holds its length.

    With `stream_format` `sse`, server-sent events: `speech.audio.delta` has `audio` in base64 and the `words` that begin in it
    (`text`, `start`, `end` in seconds from the first sample), `speech.audio.done` ends them.
    """
    await ctx.voices.wait_open()
    voice = None if body.voice in _OPENAI_VOICES else body.voice
    asked = SpeechSettings(voice=voice, speed=body.speed, lexicon=body.lexicon)
    chosen = asked.over(ctx.sessions.options.speech)
    choice = await ctx.voices.choose(body.input, chosen.voice)
    chunks = ctx.voices.speak(body.input, choice.voice, chosen.options())
    parts = encoded(chunks, body.response_format)
    first = await anext(parts, EncodedSpeech(b""))  # what fails at once is answered with its status
    headers = {"X-Voice": quote(choice.voice or "", safe=":")} if choice.automatic else {}
    if body.stream_format == "sse":
        return StreamingResponse(_events(first, parts), media_type="text/event-stream", headers=headers)
    return StreamingResponse(_audio(first, parts), media_type=body.response_format.media_type, headers=headers)


@router.get("/v1/models")
async def models(ctx: Ctx) -> dict[str, Any]:
    """One model, with the voices that it has (`GET /voices` has more of each)."""
    await ctx.voices.wait_open()
    voices = [name for voice in ctx.voices.names() for name in voice.names]
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "musetalk-livekit", "voices": voices}
    return {"object": "list", "data": [model]}


async def _audio(first: EncodedSpeech, rest: AsyncGenerator[EncodedSpeech, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first.data
        async for part in rest:
            if part.data:
                yield part.data


async def _events(first: EncodedSpeech, rest: AsyncGenerator[EncodedSpeech, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        try:
            yield _delta(first)
            async for part in rest:
                yield _delta(part)
        except ProblemError as error:
            yield _event({"type": "error", "error": openai_error(error)})
            return
        except Exception:  # noqa: BLE001 - task boundary: the answer has begun, and only an event can say that it broke
            _log.exception("speech failed")
            broken = ProblemError(ErrorCode.TTS_FAILED, "The voice broke: try again.")
            yield _event({"type": "error", "error": openai_error(broken)})
            return
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        yield _event({"type": "speech.audio.done", "usage": usage})


def _delta(part: EncodedSpeech) -> bytes:
    words = [{"text": text, "start": start, "end": end} for text, start, end in part.words]
    audio = base64.b64encode(part.data).decode("ascii")
    return _event({"type": "speech.audio.delta", "audio": audio, "words": words})


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
