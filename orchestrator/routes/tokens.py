"""`POST /token`."""

from __future__ import annotations

import re
import time

from fastapi import APIRouter
from pydantic import BaseModel, Field

from musetalk_agent.protocol.http import Strict
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.routes.context import Ctx
from orchestrator.session.record import iso

router = APIRouter(tags=["rooms"])
_OURS = re.compile(r"(avatar|voice|probe)-ses_")
"""How the identities of a session's own participants begin: a room has each identity once, and the newer one puts the older out."""


class TokenRequest(Strict):
    """Who wants to watch which room."""

    room: str = Field(min_length=1, max_length=256)
    identity: str = Field(min_length=1, max_length=256)
    ttl_s: int | None = Field(default=None, ge=1, le=24 * 3600)


class TokenAnswer(BaseModel):
    """What a client joins with."""

    token: str
    livekit_url: str
    room: str
    identity: str
    expires_at: str | None


@router.post("/token")
async def token(body: TokenRequest, ctx: Ctx) -> TokenAnswer:
    """A viewer token: joins the room, subscribes, nothing else. The room exists, rightly configured, when it is answered."""
    if _OURS.match(body.identity):
        raise ProblemError(
            ErrorCode.INVALID_REQUEST,
            f"identity: {body.identity[:80]!r} is how sessions name their own participants; take another one.",
            field="identity",
            value=body.identity[:80],
        )
    ttl_s = body.ttl_s or ctx.options.viewer_token_ttl_s
    await ctx.rooms.ensure(body.room)
    return TokenAnswer(
        token=ctx.minter.viewer(body.room, body.identity, ttl_s),
        livekit_url=ctx.minter.public_url,
        room=body.room,
        identity=body.identity,
        expires_at=iso(time.time() + ttl_s),
    )
