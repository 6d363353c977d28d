"""`POST /session/{id}/chat` and `GET /session/{id}/messages`: the conversation in text."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from musetalk_agent.protocol.http import Strict
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.routes.auth import current
from orchestrator.routes.context import Ctx, here

MAX_TEXT = 5000
router = APIRouter(tags=["conversation"])


class ChatRequest(Strict):
    """A message of the user."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)


@router.post("/session/{session_id}/chat", status_code=202)
async def chat(session_id: str, body: ChatRequest, ctx: Ctx, request: Request) -> dict[str, str]:
    """The same as having said it: the avatar answers by voice. Answers at once; events report the rest."""
    session = await here(ctx, current(request.scope), session_id)
    session.running()
    if not body.text.strip():
        raise ProblemError(ErrorCode.INVALID_REQUEST, "text: there is nothing in it.", field="text")
    return {"message_id": ctx.conversations.chat(session_id, body.text)}


@router.get("/session/{session_id}/messages")
async def messages(session_id: str, ctx: Ctx, request: Request) -> dict[str, Any]:
    """The conversation's history, oldest first. The text of a reply is what was heard of it."""
    session = await here(ctx, current(request.scope), session_id)
    talk = session.talk or ctx.conversations.get(session_id)
    return {"messages": [message.model_dump() for message in talk.messages]}
