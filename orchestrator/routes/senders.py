"""Who may open a WebSocket that makes a session speak."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import WebSocket

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.keys import Caller
from orchestrator.routes.access import sees
from orchestrator.routes.context import Context, RouteOptions
from orchestrator.routes.elsewhere import here
from orchestrator.session.model import ManagedSession


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
