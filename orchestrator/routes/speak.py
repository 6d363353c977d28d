"""`POST /session/{id}/speak` and the voices for it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from musetalk_agent.protocol.http import Strict
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.routes.access import current
from orchestrator.routes.context import Ctx
from orchestrator.routes.elsewhere import here

router = APIRouter(tags=["speech"])
MAX_TEXT = 5000


class SpeakRequest(Strict):
    """What to say, and with which voice."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)
    voice: str | None = Field(default=None, min_length=1, max_length=128)


@router.post("/session/{session_id}/speak", status_code=202)
async def speak(session_id: str, body: SpeakRequest, ctx: Ctx, request: Request) -> dict[str, int]:
    """Speaks a text. Answers at once with the number of its segment; playback events tell the rest."""
    live = (await here(ctx, current(request.scope), session_id)).speakable()
    ctx.sessions.admit()
    if not body.text.strip():
        raise ProblemError(ErrorCode.INVALID_REQUEST, "text: there is nothing to say in it.", field="text")
    live.speech.check()
    return {"segment": live.speech.say(ctx.voices.speak(body.text, body.voice or ctx.sessions.options.voice))}


@router.get("/voices")
async def voices(ctx: Ctx) -> dict[str, Any]:
    """Every voice that `/speak` knows here; empty when none is installed."""
    return {"voices": [asdict(voice) for voice in ctx.voices.names()], "default": ctx.sessions.options.voice}
