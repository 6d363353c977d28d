"""`POST /token`: a viewer's access token, for a room that exists afterwards."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from musetalk_agent.protocol.http import Strict
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.keys import Caller, Scope
from orchestrator.routes.auth import Rule, current, require
from orchestrator.routes.context import Ctx
from orchestrator.routes.participant_source import OUR_IDENTITIES
from orchestrator.session.model import iso

router = APIRouter(tags=["rooms"])
_IDENTITY_LENGTH = 256
"""LiveKit's own limit (`limit.max_participant_identity_length`)."""


PUBLISHING = Rule(Scope.STARTER)
"""A token that may publish needs a starter's key: whatever is published is heard by everyone in the room."""


class TokenRequest(Strict):
    """The participant who wants to watch a room, and whether it may publish a microphone there."""

    room: str = Field(min_length=1, max_length=256)
    identity: str = Field(min_length=1, max_length=256)
    ttl_s: int | None = Field(default=None, ge=1, le=24 * 3600)
    publish: list[Literal["microphone"]] = Field(default=[], max_length=1)


class TokenAnswer(BaseModel):
    """What a client joins with."""

    token: str
    livekit_url: str
    room: str
    identity: str
    expires_at: str | None


@router.post("/token")
async def token(body: TokenRequest, ctx: Ctx, request: Request) -> TokenAnswer:
    """A viewer token: joins the room, subscribes, nothing else. The room exists, rightly configured, when it is answered.

    With `publish` `["microphone"]` it may publish a microphone too, which needs a starter's or an operator's key.

    To a viewer's or a starter's key the identity is `KEY/IDENTITY`: LiveKit puts out of a room who has the same identity, so
    these keys get identities of their own.
    """
    caller = current(request.scope)
    if body.publish:
        require(caller, PUBLISHING)
    identity = _identity(body.identity, caller)
    ttl_s = body.ttl_s or ctx.options.viewer_token_ttl_s
    await ctx.rooms.ensure(body.room)
    return TokenAnswer(
        token=ctx.minter.viewer(body.room, identity, ttl_s, microphone=bool(body.publish)),
        livekit_url=ctx.minter.public_url,
        room=body.room,
        identity=identity,
        expires_at=iso(time.time() + ttl_s),
    )


def _identity(asked: str, caller: Caller) -> str:
    """Under which identity this caller's viewers join. Raises ProblemError `invalid_request`."""
    prefix = "" if caller.scope is Scope.OPERATOR else f"{caller.name}/"  # a key's name has no slash
    if OUR_IDENTITIES.match(asked):
        why = "is how sessions name their own participants; take another one"
    elif len(prefix) + len(asked.removeprefix(prefix)) > _IDENTITY_LENGTH:
        why = f"has no room for the prefix {prefix!r} within {_IDENTITY_LENGTH} characters; take a shorter one"
    else:
        return prefix + asked.removeprefix(prefix)
    raise ProblemError(
        ErrorCode.INVALID_REQUEST, f"identity: {asked[:80]!r} {why}.", field="identity", value=asked[:80]
    )
