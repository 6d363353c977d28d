"""The agent's routes for avatars: clips come in, are prepared ahead of any session, and go on to agents that lack them."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, StreamingResponse

from musetalk_agent.avatars.poster import poster
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.http import AvatarSource
from musetalk_agent.protocol.preparation_messages import (
    PREPARE_EVERY_S,
    PREPARE_LINES,
    AgentPrepareRequest,
    PreparedAvatar,
    PrepareLine,
)
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.service.mattes_ahead import MattesAhead

router = APIRouter()
log = logging.getLogger(__name__)
_LEAST_STEP = 0.02
"""Progress is worth a line from this much more on."""
_SHARES = {"frames": (0.05, 0.5), "faces": (0.55, 0.25)}
"""Where a stage of the preparation begins and how much of the whole it takes; the engine's artefacts take the rest."""


def _factory(request: Request) -> Factory:
    factory: Factory = request.app.state.factory
    return factory


@router.post("/avatars")
async def add_avatar(request: Request) -> dict[str, str]:
    """Takes a clip as the raw body (zip, video or image) and keeps it; `avatar_id` starts sessions with it."""
    avatar_id = await _factory(request).library.add(request.stream(), request.headers.get("x-filename"))
    return {"avatar_id": avatar_id}


@router.post("/avatars/prepare")
async def prepare(body: AgentPrepareRequest, request: Request) -> StreamingResponse:
    """Prepares an avatar for the sessions to come; see `protocol.preparation_messages`.

    A caller that leaves ends the work, unless others wait for it too.
    """
    return StreamingResponse(_lines(_factory(request), request.app.state.mattes, body), media_type=PREPARE_LINES)


@router.get("/avatars/{avatar_id}/source")
async def source(avatar_id: str, request: Request) -> FileResponse:
    """The clip's bytes. Raises `AvatarNotFound`."""
    return FileResponse(await _factory(request).library.source(avatar_id), media_type="application/octet-stream")


class _Progress:
    """Takes progress in worker threads, for one reader on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.value = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        begin, share = _SHARES.get(stage, (0.0, 0.0))
        part = min(1.0, done / total) if total > 0 else 1 - 1 / (1 + done / 100)  # the total is unknown
        self._loop.call_soon_threadsafe(self._take, begin + share * part)

    def _take(self, value: float) -> None:
        if value > self.value + _LEAST_STEP:
            self.value = value
            self.changed.set()


async def _lines(factory: Factory, mattes: MattesAhead, body: AgentPrepareRequest) -> AsyncIterator[bytes]:
    progress = _Progress()
    work = asyncio.create_task(_prepared(factory, mattes, body, progress), name="avatar-prepare")
    try:
        while not work.done():
            yield _line(PrepareLine(progress=round(progress.value, 3)))
            progress.changed.clear()
            changed = asyncio.create_task(progress.changed.wait())
            try:
                await asyncio.wait({work, changed}, timeout=PREPARE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
        try:
            yield _line(PrepareLine(prepared=work.result()))
        except ProblemError as error:
            yield _line(PrepareLine(problem=Problem.of(error)))
        except asyncio.CancelledError:
            closing = ProblemError(ErrorCode.DRAINING, "The agent shuts down: try again.", retry_after_s=2)
            yield _line(PrepareLine(problem=Problem.of(closing)))
        except Exception:  # request boundary: the response has begun, so no exception handler can report the failure
            log.exception("an avatar could not be prepared")
            broken = ProblemError(ErrorCode.INTERNAL, "The avatar could not be prepared; the agent's log says why.")
            yield _line(PrepareLine(problem=Problem.of(broken)))
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _prepared(
    factory: Factory, mattes: MattesAhead, body: AgentPrepareRequest, progress: _Progress
) -> PreparedAvatar:
    if body.clip_url is not None:
        body = body.model_copy(update={"avatar": AvatarSource(avatar_id=await factory.library.fetch(body.clip_url))})
    bundle = await factory.prepared(body, progress)
    if body.avatar_settings.background == "keep" and factory.needs_face(body.engine):
        mattes.want(bundle)
    picture = await asyncio.to_thread(poster, bundle)
    return PreparedAvatar(report=bundle.report, poster=base64.b64encode(picture).decode())


def _line(line: PrepareLine) -> bytes:
    return line.model_dump_json(exclude_none=True).encode() + b"\n"
