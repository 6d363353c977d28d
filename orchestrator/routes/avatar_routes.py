"""`/avatars`: the caller's avatars, made once and ready for every session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from musetalk_agent.protocol.http import AvatarSource, Strict
from musetalk_agent.protocol.http_server import MAX_BODY, too_large
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.avatars import avatar_library
from orchestrator.avatars.avatar_record import (
    AVATAR_ID,
    AvatarChange,
    AvatarOrder,
    AvatarRecord,
    ClipOrder,
    ShownSettings,
)
from orchestrator.keys import Caller
from orchestrator.routes.auth import current, sees_of
from orchestrator.routes.context import USUAL, After, Context, Ctx, Limit, page_of
from orchestrator.session.model import SessionRequest

router = APIRouter(tags=["avatars"])
PATH = "/avatars"
_JSON = "application/json"
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODY = {"requestBody": {"required": True, "content": {**_BYTES, _JSON: {"schema": AvatarOrder.model_json_schema()}}}}
_CLIP_BODY = {
    "requestBody": {"required": True, "content": {**_BYTES, _JSON: {"schema": ClipOrder.model_json_schema()}}}
}
_Model = TypeVar("_Model", bound=Strict)


@router.post(PATH, status_code=201, openapi_extra=_BODY)
async def add(
    request: Request,
    ctx: Ctx,
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
    x_filename: Annotated[str | None, Header(max_length=256)] = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=256)] = None,
) -> dict[str, Any]:
    """Takes an avatar: a zip of frames, a video or a picture as the raw body, or `{url, name?, settings?}` as JSON. It is prepared
    after the answer, whose `avatar_id` may go into `/session/start` at once. With an `Idempotency-Key` the same body gets the same
    avatar however often it is sent.
    """
    caller, limit = current(request.scope), ctx.options.avatar_upload_bytes
    if _is_json(request):
        order = await _parsed(request, AvatarOrder)
        return ctx.avatars.view(await ctx.avatars.order(caller.name, idempotency_key, order))
    if content_length is not None and content_length > limit:
        raise avatar_library.too_large(limit)
    made = await ctx.avatars.upload(caller.name, idempotency_key, x_filename, _body(request))
    return ctx.avatars.view(made)


@router.get(PATH)
async def avatars(
    request: Request,
    ctx: Ctx,
    limit: Limit = USUAL,
    after: After = None,
) -> dict[str, Any]:
    """The caller's avatars, the newest first. `next` goes into `after` for the next page; null on the last one."""
    caller = current(request.scope)
    mine = [each for each in await ctx.avatars.all() if sees_of(caller, each.key, "")]
    page, following = page_of(mine, lambda record: record.avatar_id, "avatar", limit, after)
    return {"avatars": [ctx.avatars.view(each) for each in page], "next": following}


@router.get("/avatars/{avatar_id}")
async def avatar(avatar_id: str, request: Request, ctx: Ctx) -> dict[str, Any]:
    """State, progress, report, settings and clips."""
    return ctx.avatars.view(await own(ctx, current(request.scope), avatar_id))


@router.patch("/avatars/{avatar_id}")
async def change(avatar_id: str, body: AvatarChange, request: Request, ctx: Ctx) -> dict[str, Any]:
    """Renames it, and sets those of its settings that are named; they hold for sessions that start from then on."""
    found = await own(ctx, current(request.scope), avatar_id)
    return ctx.avatars.view(await ctx.avatars.change(found, body))


@router.delete("/avatars/{avatar_id}", status_code=204)
async def delete(avatar_id: str, request: Request, ctx: Ctx) -> Response:
    """Removes an avatar that no session shows."""
    found = await own(ctx, current(request.scope), avatar_id)
    shows = await _session_with(ctx, avatar_id)
    if shows is not None:
        raise ProblemError(
            ErrorCode.AVATAR_IN_USE, f"Session {shows} shows this avatar: stop it, or change its avatar.", value=shows
        )
    await ctx.avatars.delete(found)
    return Response(status_code=204)


@router.get("/avatars/{avatar_id}/poster.jpg", response_class=FileResponse)
async def poster(avatar_id: str, request: Request, ctx: Ctx) -> FileResponse:
    """A frame of it as JPEG, of at most 640 pixels a side; 404 `avatar_not_found` before it is prepared."""
    found = await own(ctx, current(request.scope), avatar_id)
    path = await ctx.avatars.poster(found)
    if path is None:
        text = f"Avatar {avatar_id} is {found.state}: there is a poster once it is ready."
        raise ProblemError(ErrorCode.AVATAR_NOT_FOUND, text, value=found.state.value)
    return FileResponse(path, media_type="image/jpeg")


@router.put(
    "/avatars/{avatar_id}/clips/{name}",
    openapi_extra=_CLIP_BODY,
    responses={201: {"description": "The clip is new."}},
)
async def put_clip(
    avatar_id: str,
    name: str,
    request: Request,
    response: Response,
    ctx: Ctx,
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
    x_filename: Annotated[str | None, Header(max_length=256)] = None,
) -> dict[str, Any]:
    """Takes a clip of the avatar's person at the same framing, as the raw body or `{url}` as JSON.

    Answers when it is prepared: 201, or 200 when it takes the place of one.
    """
    found, limit = await own(ctx, current(request.scope), avatar_id), ctx.options.avatar_upload_bytes
    if content_length is not None and content_length > limit:
        raise avatar_library.too_large(limit)
    if _is_json(request):
        order = await _parsed(request, ClipOrder)
        changed, new = await ctx.avatars.order_clip(found, name, order.url)
    else:
        changed, new = await ctx.avatars.put_clip(found, name, x_filename, _body(request))
    response.status_code = 201 if new else 200
    return ctx.avatars.view(changed)


@router.delete("/avatars/{avatar_id}/clips/{name}", status_code=204)
async def delete_clip(avatar_id: str, name: str, request: Request, ctx: Ctx) -> Response:
    """Removes a clip. Sessions that have played it may play it until they end."""
    await ctx.avatars.delete_clip(await own(ctx, current(request.scope), avatar_id), name)
    return Response(status_code=204)


async def own(ctx: Context, caller: Caller, avatar_id: str) -> AvatarRecord:
    """Raises ProblemError `avatar_not_found`, for another caller's too."""
    found = await ctx.avatars.find(avatar_id)
    if found is None or not sees_of(caller, found.key, ""):
        raise avatar_library.unknown(avatar_id)
    return found


def takes_clips(path: str) -> bool:
    """Whether the bodies of this address are clips."""
    return path == PATH or (path.startswith(f"{PATH}/") and "/clips/" in path)


def in_library(avatar_id: str | None) -> bool:
    """Whether this names an avatar of the library, and not the bytes of a clip at the agents."""
    return AVATAR_ID.fullmatch(avatar_id or "") is not None


async def clip_of(
    ctx: Context, caller: Caller, avatar_id: str, asked: ShownSettings
) -> tuple[AvatarSource, ShownSettings]:
    """An avatar's clip as agents know it, and its settings under those that are asked for. Raises as `resolved` does."""
    record = await own(ctx, caller, avatar_id)
    clip = await ctx.avatars.source(record, ctx.sessions.options.start_timeout_s)
    return AvatarSource(avatar_id=clip), asked.over(record.settings)


async def resolved(ctx: Context, caller: Caller, order: SessionRequest, asked: ShownSettings) -> SessionRequest:
    """The order with what the library has of its avatar: the clip, the settings under those that are asked for, and the voice.

    Raises ProblemError `avatar_not_found`, and why the avatar cannot be used.
    """
    avatar_id, settings, source = order.avatar.avatar_id, asked, order.avatar
    if kept := in_library(avatar_id):
        source, settings = await clip_of(ctx, caller, avatar_id or "", asked)
    settings = _live(order, settings, asked)
    return replace(
        order,
        avatar=source,
        library_avatar=avatar_id if kept else None,
        avatar_settings=settings.mouth,
        avatar_voice=settings.voice,
    )


def _live(order: SessionRequest, settings: ShownSettings, asked: ShownSettings) -> ShownSettings:
    """The settings of a session: transparent only where it asks for that itself, for its viewers must know how to show it. An
    avatar that is so by its own setting is shown as it is.

    Raises ProblemError `invalid_request` where what was asked for beside it has no alpha.
    """
    if settings.background != "transparent":
        return settings
    if asked.background != "transparent":
        return settings.model_copy(update={"background": "keep"})
    without = {"record": order.record, "rtmp_url": order.rtmp_url, "engine": order.engine == "pattern"}
    for field in (name for name, wanted in without.items() if wanted):
        text = f"{field}: it has no transparency; leave it out, or give avatar_settings another background."
        raise ProblemError(ErrorCode.INVALID_REQUEST, text, field=field)
    return settings


async def _session_with(ctx: Context, avatar_id: str) -> str | None:
    """A session that shows this avatar, here or at another orchestrator."""
    known = ctx.sessions.registry.all()
    for session in known:
        if not session.ended and session.order.library_avatar == avatar_id:
            return session.session_id
    for record in await ctx.journal.others({session.session_id for session in known}):
        if not record.ended and record.view.get("avatar_id") == avatar_id:
            return record.session_id
    return None


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == _JSON


async def _parsed(request: Request, kind: type[_Model]) -> _Model:
    data = bytearray()
    async for piece in _body(request):
        data += piece
        if len(data) > MAX_BODY:
            raise too_large()
    try:
        return kind.model_validate_json(bytes(data))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise ProblemError(ErrorCode.INVALID_REQUEST, "The upload was broken off.") from None
