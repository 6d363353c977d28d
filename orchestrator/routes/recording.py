"""`/session/{id}/recording`: a session's film, while it grows and afterwards."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from musetalk_agent.protocol.http import RecordingState, Strict
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.keys import Caller
from orchestrator.recording.film_store import FilmOf
from orchestrator.recording.films import FilmOwner, view
from orchestrator.recording.growing_film import GrowingFilm
from orchestrator.routes.auth import current, sees_of
from orchestrator.routes.context import Context, Ctx, here, host_url
from orchestrator.session.model import ManagedSession

MEDIA_TYPE = "video/mp4"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
router = APIRouter(tags=["recordings"])


class RecordingRequest(Strict):
    """Body of `POST /session/{id}/recording`. `skip_idle` leaves idle seconds out from now on; None keeps what was said before.
    `of` the avatar, or of the whole room by LiveKit Egress; to end either it is not needed.
    """

    state: Literal[RecordingState.RECORDING, RecordingState.STOPPED]
    skip_idle: bool | None = None
    of: FilmOf = FilmOf.AVATAR


@router.post("/session/{session_id}/recording")
async def record(session_id: str, body: RecordingRequest, ctx: Ctx, request: Request) -> dict[str, Any]:
    """Begins to record the session, or ends that. The answer to an end comes when all of the film can be read."""
    session = await here(ctx, current(request.scope), session_id)
    if body.state is RecordingState.STOPPED:
        await ctx.films.stop(session_id, session.lease)
    elif body.of is FilmOf.ROOM:
        session.running()
        await ctx.films.record_room(owner(session), session.order.room)
    else:
        live = session.running()
        if session.order.transparent:
            text = "A transparent session is not recorded: its alpha lies below its picture. Order a render instead."
            raise ProblemError(ErrorCode.INVALID_REQUEST, text, field="state", value=body.state.value)
        if session.lease is None:
            text = f"Session {session_id} has no agent at the moment: try again."
            raise ProblemError(ErrorCode.SESSION_CONFLICT, text, retry_after_s=2)
        await ctx.films.record(owner(session), session.lease, live.heard, skip_idle=body.skip_idle)
    return _view(ctx, request, session_id, await ctx.films.find(session_id))


@router.get("/session/{session_id}/recording")
async def recording(session_id: str, ctx: Ctx, request: Request) -> dict[str, Any]:
    """What there is of the film, and where it can be read: while the session runs, and until `RECORDING_DAYS` after."""
    film = await _found(ctx, current(request.scope), session_id)
    return _view(ctx, request, session_id, film)


@router.get("/session/{session_id}/recording.mp4", response_class=Response)
async def film(
    session_id: str, ctx: Ctx, request: Request, range: Annotated[str | None, Header(max_length=200)] = None
) -> Response:
    """The film as far as it has come. `Range` asks for a part, from the beginning (`bytes=0-99`) or the end (`bytes=-99`)."""
    found = await _found(ctx, current(request.scope), session_id)
    if found is None or not found.size:
        raise ProblemError(
            ErrorCode.RECORDING_NOT_FOUND, f"Session {session_id[:64]!r} has no film yet.", value=session_id[:64]
        )
    size = found.size
    begin, end = 0, size
    part = _part(range, size)
    if part is not None:
        begin, end = part
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - begin),
        "Content-Disposition": f'inline; filename="{session_id}.mp4"',
    }
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    return StreamingResponse(
        ctx.films.read(found, begin, end), 206 if part is not None else 200, headers, media_type=MEDIA_TYPE
    )


@router.delete("/session/{session_id}/recording", status_code=204)
async def delete(session_id: str, ctx: Ctx, request: Request) -> None:
    """Removes the film. One that is being recorded begins again, empty."""
    caller, lease = current(request.scope), None
    await _found(ctx, caller, session_id)
    try:
        lease = (await here(ctx, caller, session_id)).lease
    except ProblemError as error:
        if error.code not in (ErrorCode.SESSION_ENDED, ErrorCode.SESSION_NOT_FOUND):
            raise  # another orchestrator records it
    await ctx.films.delete(session_id, lease)


def owner(session: ManagedSession) -> FilmOwner:
    """Whose the session's film is."""
    return FilmOwner(session.session_id, session.order.key, session.order.public_token)


async def _found(ctx: Context, caller: Caller, session_id: str) -> GrowingFilm | None:
    """The film that this caller may see; None for a session without one. Raises ProblemError."""
    film = await ctx.films.find(session_id)
    if film is not None and not sees_of(caller, film.index.key, film.index.public_token):
        raise ctx.sessions.registry.unknown(session_id)
    if film is None:
        await here(ctx, caller, session_id)  # says that there is no such session, or where it is
    return film


def _view(ctx: Context, request: Request, session_id: str, film: GrowingFilm | None) -> dict[str, Any]:
    base = host_url(request, ctx.options.public_url).replace("ws", "http", 1)
    return view(film, f"{base}/session/{session_id}/recording.mp4", ctx.films.choices)


def _part(asked: str | None, size: int) -> tuple[int, int] | None:
    """The bytes that a Range header asks for, from and up to; None: all of them, as for a header that is not understood (RFC 9110).

    Raises ProblemError `range_not_satisfiable`.
    """
    found = _RANGE.fullmatch(asked.replace(" ", "")) if asked else None
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:
        begin, end = max(0, size - int(found[2])), size
    else:
        begin, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < begin:
            return None
    if begin >= end:
        raise ProblemError(
            ErrorCode.RANGE_NOT_SATISFIABLE,
            f"Range: the film has {size} bytes so far, and {asked!r} lies behind them; ask again later, or for less.",
            field="Range",
            limit=size,
            value=str(asked)[:80],
        )
    return begin, end
