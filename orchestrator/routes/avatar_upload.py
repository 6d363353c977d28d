"""`POST /avatars`: a clip from the caller's own disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.requests import ClientDisconnect

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.routes.context import Ctx

router = APIRouter(tags=["avatars"])
PATH = "/avatars"


@router.post(PATH)
async def upload(
    request: Request,
    ctx: Ctx,
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
    x_filename: Annotated[str | None, Header(max_length=256)] = None,
) -> dict[str, Any]:
    """Takes a zip of frames or a video as the raw body and prepares it. The answer's `avatar_id` goes into `/session/start`."""
    limit = ctx.options.avatar_upload_bytes
    if content_length is not None and content_length > limit:
        raise _too_large(limit)
    headers = {"Content-Type": request.headers.get("content-type", "application/octet-stream")}
    if x_filename:
        headers["X-Filename"] = x_filename
    async with ctx.pool.borrow() as lease:
        try:
            report = await ctx.agents.upload(lease, _bounded(request, limit), headers)
        except ClientDisconnect:
            raise ProblemError(ErrorCode.INVALID_REQUEST, "The upload was broken off.") from None
        if isinstance(report.get("avatar_id"), str):
            ctx.pool.remember_avatar(report["avatar_id"], lease)
        return report


async def _bounded(request: Request, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        yield chunk


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        ErrorCode.AVATAR_TOO_LARGE, f"The upload passes {limit} bytes: shorten or scale the clip.", limit=limit
    )
