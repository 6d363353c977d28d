"""`/public-tokens`, where a key's holder makes tokens for web pages, and `POST /public/session`, by which such a page starts."""

from __future__ import annotations

import secrets
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError, field_validator

from musetalk_agent.protocol.http import Picture, Strict, VideoCodec
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.avatars.avatar_record import ShownSettings
from orchestrator.conversation.options import ConversationRequest
from orchestrator.keys import Caller, Scope
from orchestrator.public_tokens import HOLD_S, TOKEN_ID, PublicGrant, new_id, refused
from orchestrator.routes.auth import current
from orchestrator.routes.context import Context, Ctx, run_once
from orchestrator.routes.public_access import shown_start
from orchestrator.routes.session_routes import StartRequest, admitted, started
from orchestrator.session.metering import REVOKED
from orchestrator.session.model import SessionRequest, iso
from orchestrator.store.session_store import SealBroken
from orchestrator.tts.speech_settings import SpeechSettings

ORIGINS_MAX = 16
AVATARS_MAX = 16
ROOM_PREFIX = "public-"
_TOKEN_S = (60, 24 * 3600)
router = APIRouter(tags=["public tokens"])


class PublicTokenRequest(Picture):
    """Body of `POST /public-tokens`: which pages, how much, and the session that they may start.

    `minutes` are those of all its sessions together, `session_minutes` those of one; `sessions` run at a time. Of several avatars
    the page chooses one; the first is the default.
    """

    origins: list[str] = Field(min_length=1, max_length=ORIGINS_MAX)
    ttl_s: int = Field(default=3600, ge=_TOKEN_S[0], le=_TOKEN_S[1])
    minutes: float = Field(default=10, ge=0.1, le=100_000, allow_inf_nan=False)
    session_minutes: float | None = Field(default=None, ge=0.1, le=24 * 60, allow_inf_nan=False)
    sessions: int = Field(default=1, ge=1, le=1000)
    starts_per_minute: float = Field(default=6, ge=0.1, le=1000, allow_inf_nan=False)
    avatar_id: str | list[str] | None = None
    engine: str | None = Field(default=None, min_length=1, max_length=64)
    avatar_settings: ShownSettings = ShownSettings()
    captions: bool = True
    video_codec: VideoCodec = VideoCodec.VP8
    simulcast: bool = False
    speech: SpeechSettings | None = None
    conversation: ConversationRequest | None = None
    webhook_url: str | None = Field(default=None, min_length=8, max_length=2048, repr=False)
    webhook_secret: str | None = Field(default=None, max_length=128, repr=False)

    @field_validator("origins")
    @classmethod
    def _exact(cls, value: list[str]) -> list[str]:
        for origin in value:
            check_origin(origin)
        return list(dict.fromkeys(value))

    @field_validator("avatar_id")
    @classmethod
    def _some(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and not 1 <= len(value) <= AVATARS_MAX:
            raise ValueError(f"give one avatar, or 1 to {AVATARS_MAX} of which the page chooses")
        return value

    @property
    def avatars(self) -> list[str]:
        """Those that the page may name."""
        if self.avatar_id is None:
            return []
        return [self.avatar_id] if isinstance(self.avatar_id, str) else self.avatar_id

    def preset(self) -> Preset:
        """The sessions that the token may start. Raises pydantic's ValidationError where a start would be refused for its form."""
        fields = self.model_dump(include=set(StartRequest.model_fields) - {"avatar_id"}, exclude_unset=True)
        avatars = self.avatars
        first = {"avatar_id": avatars[0]} if avatars else {}
        return Preset(start=StartRequest.model_validate({**fields, **first, "room": ROOM_PREFIX}), avatars=avatars)


class Preset(BaseModel):
    """What a token may start: `start` with a room of its own, and any of `avatars`."""

    start: StartRequest
    avatars: list[str]

    def chosen(self, avatar_id: str | None) -> StartRequest:
        """The start that the page asks for. Raises ProblemError `forbidden` for an avatar that the token does not name."""
        if avatar_id is not None and avatar_id not in self.avatars:
            raise ProblemError(
                ErrorCode.FORBIDDEN,
                f"avatar_id: this token does not allow {avatar_id[:80]!r}; leave it out for the one it has.",
                field="avatar_id",
                value=avatar_id[:80],
            )
        own = {"room": ROOM_PREFIX + secrets.token_urlsafe(16)}
        return self.start.model_copy(update={**own, **({"avatar_id": avatar_id} if avatar_id is not None else {})})


class PublicStart(Strict):
    """Body of `POST /public/session`: nothing but a choice among what the token names."""

    avatar_id: str | None = Field(default=None, min_length=1, max_length=256)


class PublicTokenAnswer(BaseModel):
    """`GET /public-tokens/{token_id}`: what a token allows and has used. `POST /public-tokens` adds the token itself, once."""

    token_id: str
    origins: list[str]
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    minutes: float
    session_minutes: float | None
    minutes_used: float
    sessions: int
    sessions_running: int
    starts: int
    starts_per_minute: float


class MintedToken(PublicTokenAnswer):
    """The answer to `POST /public-tokens`."""

    token: str


def check_origin(origin: str) -> None:
    """Raises ValueError for what no browser sends as `Origin`."""
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"{origin[:100]!r} is not an origin") from None
    named = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}.get(parts.scheme)
    exact = f"{parts.scheme}://{named}" + ("" if port is None or port == default else f":{port}")
    if default is None or not host or "*" in host or not origin.isascii() or exact != origin or len(origin) > 255:
        better = f"; browsers send {exact!r}" if default and host and "*" not in host and origin.isascii() else ""
        raise ValueError(
            f"{origin[:100]!r} is not an origin like 'https://www.example.com' or 'http://localhost:3000'{better}"
        )


@router.post("/public-tokens", status_code=201)
async def mint(body: PublicTokenRequest, ctx: Ctx, request: Request) -> MintedToken:
    """A token that a web page may hold: for the named origins, for a while, for sessions of this kind, so many and so long.

    Only this answer has the token. Its sessions are those of the caller's key, whose own quotas count too.
    """
    caller = current(request.scope)
    if ctx.credentials.named(caller.name) is None:
        raise ProblemError(ErrorCode.FORBIDDEN, f"{caller.name!r} is no key that lasts: public tokens need one.")
    try:
        preset = body.preset()
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    await admitted(ctx, preset.start, caller)
    now = time.time()
    grant = PublicGrant(
        token_id=new_id(),
        key=caller.name,
        origins=tuple(body.origins),
        created_at=now,
        expires_at=now + body.ttl_s,
        minutes=body.minutes,
        session_minutes=body.session_minutes,
        sessions=body.sessions,
        starts_per_minute=body.starts_per_minute,
        sealed=ctx.journal.seal.encrypt(preset.model_dump_json(exclude_unset=True)),
    )
    token = await ctx.public_tokens.mint(grant)
    return MintedToken(**_view(grant).model_dump(), token=token)


@router.get("/public-tokens/{token_id}")
async def read(token_id: str, ctx: Ctx, request: Request) -> PublicTokenAnswer:
    """What a token allows and has used, for a day after it has expired."""
    return _view(await _own(ctx, current(request.scope), token_id))


@router.delete("/public-tokens/{token_id}")
async def revoke(token_id: str, ctx: Ctx, request: Request) -> PublicTokenAnswer:
    """From now on the token is refused; its sessions end, those at other orchestrators within 20 s. Idempotent."""
    await _own(ctx, current(request.scope), token_id)
    grant = await ctx.public_tokens.revoke(token_id)
    if grant is None:
        raise _unknown(token_id)
    for session in ctx.sessions.registry.running():
        if session.order.public_token == token_id:
            await ctx.sessions.stop(session, REVOKED)
    return _view(grant)


@router.post("/public/session")
async def start_public(
    body: PublicStart,
    request: Request,
    ctx: Ctx,
    idempotency_key: Annotated[str | None, Header(min_length=16, max_length=256)] = None,
) -> dict[str, Any]:
    """Starts the session of a public token, in a room of its own. The answer is a part of that of `/session/start`.

    `Idempotency-Key` as there; it has at least 16 characters, since a token's pages share it: take a random one.
    """
    grant: PublicGrant = request.state.grant
    ctx.public_tokens.check_fresh(grant)
    maker = ctx.credentials.named(grant.key)
    if maker is None:
        raise refused("was made with a key that does not count any more")
    preset = _preset(ctx, grant).chosen(body.avatar_id)
    base = replace(await admitted(ctx, preset, maker), public_token=grant.token_id)
    ctx.note_address(request)
    begin = partial(_begin, ctx, request, maker, base)
    own_key = idempotency_key and f"{current(request.scope).name} {idempotency_key}"
    answer = await run_once(ctx.starts, request, own_key, body.model_dump_json(), begin)
    request.state.session_id = answer["session_id"]
    return answer


async def _begin(ctx: Context, request: Request, maker: Caller, order: SessionRequest) -> dict[str, object]:
    mine = sum(session.order.key == maker.name for session in ctx.sessions.registry.running())
    ctx.access.quotas.start(maker, mine, time.monotonic())
    tokens, options = ctx.public_tokens, ctx.sessions.options
    grant = await tokens.reserve(order.public_token, order.room, options.start_timeout_s + HOLD_S)
    longest_s = min(60 * (grant.session_minutes or float("inf")), grant.seconds_left + HOLD_S)
    async with AsyncExitStack() as on_error:  # failed or cancelled: nothing of the start remains
        on_error.push_async_callback(tokens.release, order.public_token, order.room)
        session = await ctx.sessions.start(replace(order, max_s=longest_s))
        on_error.pop_all()
    answer = shown_start(started(ctx, request, session))
    left_s = max(1.0, session.expires_at - time.time())
    talks = order.conversation is not None
    answer["viewer_token"] = ctx.minter.viewer(order.room, str(answer["viewer_identity"]), left_s, talks=talks)
    return answer


def _preset(ctx: Context, grant: PublicGrant) -> Preset:
    try:
        return Preset.model_validate_json(ctx.journal.seal.decrypt(grant.sealed))
    except (SealBroken, ValidationError) as error:
        raise refused("cannot be read by this orchestrator") from error


async def _own(ctx: Context, caller: Caller, token_id: str) -> PublicGrant:
    """The grant, if this caller made it or is an operator. Raises ProblemError `not_found`."""
    grant = await ctx.public_tokens.look_up(token_id) if TOKEN_ID.fullmatch(token_id) else None
    if grant is None or (caller.scope is not Scope.OPERATOR and grant.key != caller.name):
        raise _unknown(token_id)
    return grant


def _unknown(token_id: str) -> ProblemError:
    return ProblemError(ErrorCode.NOT_FOUND, f"There is no public token {token_id[:64]!r}; give its token_id.")


def _view(grant: PublicGrant) -> PublicTokenAnswer:
    return PublicTokenAnswer(
        token_id=grant.token_id,
        origins=list(grant.origins),
        created_at=iso(grant.created_at),
        expires_at=iso(grant.expires_at),
        revoked_at=iso(grant.revoked_at),
        minutes=grant.minutes,
        session_minutes=grant.session_minutes,
        minutes_used=round(grant.used.seconds / 60, 3),
        sessions=grant.sessions,
        sessions_running=grant.used.running(time.time()),
        starts=grant.used.starts,
        starts_per_minute=grant.starts_per_minute,
    )
