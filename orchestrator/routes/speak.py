"""`POST /session/{id}/speak`, for a whole text and for one that is still being written, and the voices for it."""

from __future__ import annotations

import asyncio
import codecs
from contextlib import suppress
from email.message import Message
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from musetalk_agent.protocol.http_server import dictated
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.routes.auth import current
from orchestrator.routes.context import Ctx, here
from orchestrator.session.speech_queue import TextStream
from orchestrator.tts.speech_settings import VOICE_CHARACTERS, SpeechSettings
from orchestrator.tts.synthesizer import FASTEST_SPEED, SLOWEST_SPEED
from orchestrator.tts.voice_choice import VoiceChoice
from orchestrator.tts.voices import nothing_to_say

MAX_TEXT = 5000
_GROWING = {
    "parameters": [
        {
            "name": "voice",
            "in": "query",
            "required": False,
            "schema": {"type": "string", "minLength": 1, "maxLength": VOICE_CHARACTERS},
            "description": "Voice of a text in `text/plain`.",
        },
        {
            "name": "speed",
            "in": "query",
            "required": False,
            "schema": {"type": "number", "minimum": SLOWEST_SPEED, "maximum": FASTEST_SPEED},
            "description": "Speed of a text in `text/plain`.",
        },
    ],
    "requestBody": {"content": {"text/plain": {"schema": {"type": "string"}}}},
}


class _DictatedRoute(APIRoute):
    """Takes texts that come as such; JSON is another route's at the same address."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or not dictated(scope):
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(tags=["speech"])
growing = APIRouter(tags=["speech"], route_class=_DictatedRoute)


class SpeakRequest(SpeechSettings):
    """What to say, and how."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)


@growing.post("/session/{session_id}/speak", status_code=202, include_in_schema=False)
async def dictate(
    session_id: str,
    ctx: Ctx,
    request: Request,
    voice: Annotated[str | None, Query(min_length=1, max_length=VOICE_CHARACTERS)] = None,
    speed: Annotated[float | None, Query(ge=SLOWEST_SPEED, le=FASTEST_SPEED)] = None,
) -> dict[str, int | str | None]:
    """Speaks the body while it comes. Answers at its end, or when the segment is over."""
    await ctx.voices.wait_open()
    session = await here(ctx, current(request.scope), session_id)
    live = session.speakable()
    _check_charset(request)
    ctx.sessions.admit()
    chosen = ctx.sessions.speech(session, SpeechSettings(voice=voice, speed=speed))
    ctx.voices.check(chosen.voice)
    live.speech.check()
    actions = ctx.clips.of_text(session, await ctx.clips.names(session))
    live = session.speakable()  # it may have ended meanwhile
    choices: list[VoiceChoice] = []
    dictation = TextStream(
        live.speech, lambda text: ctx.voices.stream(text, chosen.voice, chosen.options(), choices.append), actions
    )
    reading = asyncio.create_task(_read(request, dictation), name=f"dictation-{session_id}")
    over = asyncio.create_task(dictation.over.wait())
    try:
        await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            reading.result()
    finally:
        dictation.end()
        reading.cancel()
        over.cancel()
        await asyncio.gather(reading, over, return_exceptions=True)
    if dictation.utterance is None:
        raise nothing_to_say()
    if dictation.utterance.failure is not None:
        raise dictation.utterance.failure
    return _answer(dictation.utterance.segment, choices[0] if choices else None)


async def _read(request: Request, dictation: TextStream) -> None:
    """Returns at the end of the body, or when the segment is over.

    Raises ProblemError `invalid_request` at the first byte that is no UTF-8; what came before it is said.
    """
    decoder, taken = codecs.getincrementaldecoder("utf-8")(), 0
    with suppress(ClientDisconnect):  # what has come is said
        async for part in request.stream():
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(part, final=not part)  # the last part is empty
            except UnicodeDecodeError as error:
                raise _no_utf8(taken - waiting + error.start) from None
            taken += len(part)
            if not dictation.write(text):
                return
            await dictation.drain()


def _check_charset(request: Request) -> None:
    """Raises ProblemError `invalid_request` for a text in another encoding."""
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    charset = header.get_content_charset("utf-8")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise ProblemError(
            ErrorCode.INVALID_REQUEST,
            f"Content-Type: a text in {charset[:40]!r} cannot be read: send it as UTF-8.",
            field="Content-Type",
            value=charset[:40],
        )


def _no_utf8(at: int) -> ProblemError:
    return ProblemError(
        ErrorCode.INVALID_REQUEST,
        f"text: byte {at} of the body is no UTF-8: send the text as UTF-8.",
        field="text",
        value=at,
    )


@router.post("/session/{session_id}/speak", status_code=202, openapi_extra=_GROWING)
async def speak(session_id: str, body: SpeakRequest, ctx: Ctx, request: Request) -> dict[str, int | str | None]:
    """Speaks a text. Answers at once with the number of its segment; playback events report the rest. A body of `text/plain` is
    spoken while it comes, and answered at its end. In a conversation the avatar says the text as a line of its own, and the
    answer is `message_id`.
    """
    await ctx.voices.wait_open()
    session = await here(ctx, current(request.scope), session_id)
    if session.order.conversation is not None:
        session.running()
        return {"message_id": ctx.conversations.say(session_id, _line(body))}
    live = session.speakable()
    ctx.sessions.admit()
    _check_text(body)
    chosen = ctx.sessions.speech(session, body)
    actions = ctx.clips.of_text(session, await ctx.clips.names(session))
    text = actions.marks.whole(body.text)
    choice = await ctx.voices.choose(text, chosen.voice)
    live = session.speakable()  # it may have ended meanwhile
    spoken = partial(ctx.voices.speak, text, choice.voice, chosen.options())
    return _answer(live.speech.say(spoken, actions=actions).segment, choice)


def _answer(segment: int, choice: VoiceChoice | None) -> dict[str, int | str | None]:
    """The segment, and the voice where it was chosen by the text's language."""
    if choice is None or not choice.automatic:
        return {"segment": segment}
    return {"segment": segment, "voice": choice.voice, "language": choice.language}


def _line(body: SpeakRequest) -> str:
    """A line of a conversation. Raises ProblemError `invalid_request` where it is to have another voice than the rest."""
    _check_text(body)
    for name in sorted(body.model_fields_set - {"text"}):
        raise ProblemError(
            ErrorCode.INVALID_REQUEST,
            f"{name}: this session's conversation speaks with one voice: leave it out, or give it at /session/start.",
            field=name,
        )
    return body.text.strip()


def _check_text(body: SpeakRequest) -> None:
    if not body.text.strip():
        raise ProblemError(ErrorCode.INVALID_REQUEST, "text: there is nothing to say in it.", field="text")


@router.get("/voices")
async def voices(ctx: Ctx) -> dict[str, Any]:
    """Every voice that `/speak` knows here, empty when none is installed; `warnings` name files of VOICES_DIR that are none."""
    await ctx.voices.wait_open()
    listed = [voice.view() for voice in ctx.voices.names()]
    warnings = [{"file": file, "message": reason} for file, reason in sorted(ctx.voices.warnings().items())]
    answer = {"voices": listed, "default": ctx.sessions.options.speech.voice}
    return {**answer, "warnings": warnings} if warnings else answer
