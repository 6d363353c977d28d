"""Finds the session of a request: a local one, one in the store, and one that a WebSocket may speak in.

Sessions owned by another orchestrator are read from the store; everything else is refused with 421.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import WebSocket

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.keys import Caller, Scope
from orchestrator.routes.auth import sees
from orchestrator.routes.context import Context, RouteOptions
from orchestrator.session.model import ManagedSession
from orchestrator.store.session_store import StoredSession


async def here(ctx: Context, caller: Caller | None, session_id: str) -> ManagedSession:
    """The session, if it is this process's. `caller` None: the holder of the session's own token.

    Raises ProblemError: `session_elsewhere`, `session_conflict` while it is being taken over, `session_ended`,
    `session_not_found`, `store_unavailable`.
    """
    if ctx.sessions.registry.holds(session_id):
        return ctx.sessions.registry.get(session_id)
    record = await stored(ctx, caller, session_id)
    if record.ended:
        raise ProblemError(
            ErrorCode.SESSION_ENDED,
            f"Session {session_id} is {record.state.value}: start another one.",
            value=session_id,
        )
    holder = await ctx.ledger.holder(session_id)
    if holder is None or holder == ctx.ledger.owner:
        text = f"Session {session_id} is being taken over by another orchestrator: try again."
        raise ProblemError(ErrorCode.SESSION_CONFLICT, text, retry_after_s=2)
    text = f"Another orchestrator owns session {session_id}: ask there."
    raise ProblemError(ErrorCode.SESSION_ELSEWHERE, text, value=record.owner_url)


async def stored(ctx: Context, caller: Caller | None, session_id: str) -> StoredSession:
    """What the store has of it. Raises ProblemError `session_not_found`, also for another caller's, `store_unavailable`."""
    record = await ctx.ledger.elsewhere(session_id)
    if record is None or (caller is not None and not _sees(caller, record)):
        raise ctx.sessions.registry.unknown(session_id)
    return record


async def views(ctx: Context, caller: Caller, known: set[str]) -> list[dict[str, Any]]:
    """Every other session that the caller sees."""
    return [record.view for record in await ctx.ledger.others(known) if _sees(caller, record)]


def _sees(caller: Caller, record: StoredSession) -> bool:
    return caller.scope is not Scope.STARTER or record.key == caller.name


async def admit(ctx: Context, socket: WebSocket, session_id: str, *, text: bool = False) -> ManagedSession:
    """The session, for who may speak in it; `text` is for those who hold a key.

    Raises ProblemError with status 401, 403, 404, 409, 421, 422, 429 or 503.
    """
    _check_origin(ctx.options, socket)
    access = ctx.access
    caller = access.speaker(socket.scope, session_id) if text else access.audio_caller(socket.scope, session_id)
    if not session_id:
        raise ProblemError(ErrorCode.INVALID_REQUEST, "session_id: name the session in the query.", field="session_id")
    session = await _here(ctx, caller, session_id)
    if caller is not None and not sees(caller, session):
        raise ctx.sessions.registry.unknown(session_id)
    return session


async def _here(ctx: Context, caller: Caller | None, session_id: str) -> ManagedSession:
    """The session; one that is over is not there for a sender."""
    try:
        session = await here(ctx, caller, session_id)
        session.running()
    except ProblemError as error:
        if error.code is ErrorCode.SESSION_ENDED:
            raise ProblemError(ErrorCode.SESSION_NOT_FOUND, error.detail) from None
        raise
    return session


def _check_origin(options: RouteOptions, socket: WebSocket) -> None:
    """Browsers let any page open a WebSocket, and say whose page it is. What is no browser sends no Origin."""
    origin = socket.headers.get("origin")
    if origin is None or {origin, "*"} & options.allowed_origins:
        return
    ours = {socket.headers.get("host", ""), urlsplit(options.public_url or "").netloc}
    if (host := urlsplit(origin).netloc) and host in ours:
        return
    raise ProblemError(
        ErrorCode.FORBIDDEN,
        f"Pages of {origin[:100]!r} may not open {socket.url.path[:100]}: name the origin in ALLOWED_ORIGINS.",
        value=origin[:100],
    )
