"""`/renders`: films that are made as jobs."""

from __future__ import annotations

import hashlib
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import FileResponse

from musetalk_agent.protocol.action_marks import IDLE, ActionMarks
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.renders import (
    RenderFormat,
    RenderMark,
    RenderOrder,
    RenderRequest,
    RenderState,
    new_render_id,
)
from orchestrator.avatars.avatar_record import ShownSettings
from orchestrator.keys import Caller
from orchestrator.routes.auth import current, sees_of
from orchestrator.routes.avatar_routes import clip_of, in_library, own
from orchestrator.routes.context import USUAL, After, Context, Ctx, Limit, page_of

router = APIRouter(tags=["renders"])
_CAPTIONS = {"srt": "application/x-subrip", "vtt": "text/vtt"}
_MEDIA = {RenderFormat.MP4: "video/mp4", RenderFormat.WEBM: "video/webm", RenderFormat.PNG: "application/zip"}


@router.post("/renders", status_code=202)
async def order(
    body: RenderRequest,
    request: Request,
    ctx: Ctx,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=256)] = None,
) -> dict[str, Any]:
    """Orders a film. With an `Idempotency-Key`, the same body gets the same render however often it is sent."""
    caller = current(request.scope)
    asked = RenderOrder(
        render_id=new_render_id(caller.name, idempotency_key),
        key=caller.name,
        created_at=time.time(),
        request=body,
        body_sha256=hashlib.sha256(body.model_dump_json().encode()).hexdigest(),
    )
    made = await _of_clip(ctx, caller, asked)
    known = idempotency_key is not None and await ctx.renders.find(made.render_id) is not None
    if not known:
        ctx.access.quotas.render(caller, ctx.renders.open_of(caller.name))
    taken = await ctx.renders.order(made)
    return await ctx.renders.view(taken)


@router.get("/renders")
async def renders(
    request: Request,
    ctx: Ctx,
    limit: Limit = USUAL,
    after: After = None,
) -> dict[str, Any]:
    """The caller's renders, the newest first. `next` goes into `after` for the next page; null on the last one."""
    caller = current(request.scope)
    mine = [each for each in await ctx.renders.all() if sees_of(caller, each.key, "")]
    page, following = page_of(mine, lambda order: order.render_id, "render", limit, after)
    views = [await ctx.renders.view(each) for each in page]
    return {"renders": views, "next": following}


@router.get("/renders/{render_id}")
async def render(render_id: str, request: Request, ctx: Ctx) -> dict[str, Any]:
    """State, progress and result."""
    return await ctx.renders.view(await _own(ctx, current(request.scope), render_id))


@router.post("/renders/{render_id}/cancel")
async def cancel(render_id: str, request: Request, ctx: Ctx) -> dict[str, Any]:
    """Ends a render that has not ended; one that has is left as it is."""
    found = await _own(ctx, current(request.scope), render_id)
    await ctx.renders.cancel(found)
    return await ctx.renders.view(found)


@router.get("/renders/{render_id}/result.{suffix}", response_class=FileResponse)
async def result(render_id: str, suffix: str, request: Request, ctx: Ctx) -> FileResponse:
    """The film (`result.mp4`, `result.webm`), or the zip of its frames (`result.zip`), with `Range`; its captions (`result.srt`,
    `result.vtt`).
    """
    found = await _own(ctx, current(request.scope), render_id)
    view = await ctx.renders.view(found)
    if view["state"] != RenderState.DONE:
        text = f"The render is {view['state']}: there is a result once it is done."
        raise ProblemError(ErrorCode.RENDER_NOT_DONE, text, value=view["state"])
    made = found.request.format
    captions = view["result"]["captions"]
    if captions is not None and suffix in captions:
        caption_file = ctx.renders.folder.path(render_id) / f"result.{suffix}"
        return FileResponse(caption_file, media_type=_CAPTIONS[suffix], filename=f"{render_id}.{suffix}")
    if suffix != made.suffix:
        text = f"The render's result is result.{made.suffix}, as its format says."
        raise ProblemError(ErrorCode.RENDER_NOT_FOUND, text, value=suffix[:16])
    path = ctx.renders.folder.result(render_id, made)
    return FileResponse(path, media_type=_MEDIA[made], filename=f"{render_id}.{made.suffix}")


async def _of_clip(ctx: Context, caller: Caller, asked: RenderOrder) -> RenderOrder:
    """The same with an avatar of the library by its clip, which is what workers know, its settings and its voice; the marks of what
    is said are taken out.
    """
    body = asked.request
    if not in_library(body.avatar_id):
        return asked
    given = body.avatar_settings.model_dump(include=body.avatar_settings.model_fields_set)
    source, settings = await clip_of(ctx, caller, body.avatar_id or "", ShownSettings.model_validate(given))
    voice = body.voice or (settings.voice if body.text is not None else None)
    update = {"avatar_id": source.avatar_id, "avatar_settings": settings.mouth, "voice": voice}
    record = await own(ctx, caller, body.avatar_id or "")
    said = {name: text for name in ("text", "transcript") if (text := getattr(body, name)) is not None}
    marks: list[RenderMark] = []
    for name, text in said.items():
        found = ActionMarks((IDLE, *record.clips))
        update[name] = spoken = found.whole(text)
        marks = marks or [RenderMark(name=mark.name, letters=mark.letters) for mark in found.found]
        if not spoken.strip():
            raise ProblemError(ErrorCode.INVALID_REQUEST, f"{name}: there is nothing in it but actions.", field=name)
    whole = body.model_copy(update=update)
    try:
        whole.check_transparency()  # which may be the avatar's own setting
    except ValueError as error:
        raise ProblemError(ErrorCode.INVALID_REQUEST, f"{error}.", field="format", value=body.format.value) from error
    clips = {name: clip for name in {IDLE, *(mark.name for mark in marks)} if (clip := record.clip(name)) is not None}
    clips[IDLE] = source.avatar_id or ""
    return asked.model_copy(update={"request": whole, "marks": marks, "clips": clips})


async def _own(ctx: Context, caller: Caller, render_id: str) -> RenderOrder:
    """Raises ProblemError `render_not_found`, for another caller's too."""
    found = await ctx.renders.find(render_id)
    if found is None or not sees_of(caller, found.key, ""):
        text = f"There is no render {render_id[:64]!r}."
        raise ProblemError(ErrorCode.RENDER_NOT_FOUND, text, value=render_id[:64])
    return found
