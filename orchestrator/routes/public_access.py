"""Who holds a public token, from which page, what browsers are answered about it (CORS), and what it may see of a session.

A public token counts only with an `Origin` that it names. That binds browsers; whatever is no browser sends what it likes, and is
bound by the token's minutes, sessions and rate.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.events import SessionEvent
from orchestrator.keys import Caller, KeyLimits, Scope
from orchestrator.public_tokens import PublicGrant, PublicTokens
from orchestrator.routes.error_responses import problem_response

REQUESTS_PER_SESSION = 5.0
"""Requests a second that a token's pages may send for each of its sessions: a conversation in text takes one or two."""
PREFLIGHT_S = 600
"""How long a browser keeps the answer to a preflight."""
_ALLOWED = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
SESSION_PATH = "/public/session"
"""Where a page begins. Any page may read that its origin is not the token's: without that its browser calls it a network error, and
the page tries again."""


async def public_caller(tokens: PublicTokens, scope: AsgiScope, token_id: str, public_url: str | None) -> Caller:
    """The holder of a token whose signature is right; its grant is in the request's state from now on.

    Raises ProblemError `unauthorized` for one that was revoked or is gone, `origin_forbidden`, `store_unavailable`.
    """
    origin = _origin(scope, public_url)
    try:
        grant = await tokens.find(token_id)
    except ProblemError:
        if origin is not None and await tokens.knows_origin(origin):
            scope["state"]["cors_origin"] = origin  # its page may read why
        raise
    if origin is None:
        raise ProblemError(
            ErrorCode.ORIGIN_FORBIDDEN,
            "A public token is for web pages, and this request has no Origin: use an API key.",
        )
    if origin not in grant.origins:
        if scope["path"] == SESSION_PATH:
            scope["state"]["cors_origin"] = origin  # any page may read why
        raise ProblemError(
            ErrorCode.ORIGIN_FORBIDDEN,
            f"Pages of {origin[:100]!r} may not use this public token: name the origin when it is made.",
            value=origin[:100],
        )
    scope["state"]["cors_origin"], scope["state"]["grant"] = origin, grant
    return holder(grant)


def holder(grant: PublicGrant) -> Caller:
    """Who holds this token, for quotas and the audit log: `KEY:TOKEN_ID`, with the name of its maker's key."""
    limits = KeyLimits(requests_per_second=REQUESTS_PER_SESSION * grant.sessions)
    return Caller(f"{grant.key}:{grant.token_id}", Scope.PUBLIC, limits, grant.token_id)


def _origin(scope: AsgiScope, public_url: str | None) -> str | None:
    """Whose page sends the request. Browsers leave `Origin` out where a page reads from its own host, and say so."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is not None or headers.get("sec-fetch-site") != "same-origin":
        return origin
    if public_url is not None:
        parts = urlsplit(public_url)
        return f"{parts.scheme}://{parts.netloc}"
    return f"{scope['scheme']}://{headers.get('host', '')}"


def add_cors(scope: AsgiScope, headers: MutableHeaders) -> None:
    """Lets the page read the answer, where it is one of the token's."""
    origin = scope["state"].get("cors_origin")
    if origin is not None:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = "Retry-After"
        headers.add_vary_header("Origin")


class PublicPreflights:
    """Answers preflights of pages that a public token names. They carry no token, so every token's origins count, and any origin at
    `SESSION_PATH`.

    Every other preflight is passed on. `is_public` says by method and path which routes take public tokens.
    """

    def __init__(self, app: ASGIApp, *, is_public: Callable[[str, str], bool]) -> None:
        self._app = app
        self._is_public = is_public

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """ASGI."""
        answer = await self._answer(scope) if scope["type"] == "http" and scope["method"] == "OPTIONS" else None
        await (answer or self._app)(scope, receive, send)

    async def _answer(self, scope: AsgiScope) -> Response | None:
        headers = Headers(scope=scope)
        origin, method = headers.get("origin"), headers.get("access-control-request-method")
        if origin is None or method is None or not self._is_public(method, scope["path"]):
            return None
        try:
            known = await scope["app"].state.context.public_tokens.knows_origin(origin)
        except ProblemError as error:
            return problem_response(error)
        if not known and scope["path"] != SESSION_PATH:
            return None
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Methods": method,
                "Access-Control-Allow-Headers": _ALLOWED,
                "Access-Control-Max-Age": str(PREFLIGHT_S),
                "Cache-Control": "no-store",
                "Vary": "Origin",
            },
        )


_BOTH = ("session_id", "state", "room", "avatar_identity", "fps", "width", "height", "expires_at")
SESSION = (*_BOTH, "started_at", "ended_at", "end_reason")
STARTED = (*_BOTH, "livekit_url", "viewer_identity", "viewer_token")
_DATA = {"publisher.changed": ("publisher",), "warning": ("code", "part"), "error": ("code",)}
"""Fields of events of which the rest is for operators; other events are shown whole."""
_HIDDEN = frozenset({"tool.started", "tool.finished"})


def shown(caller: Caller, view: dict[str, Any]) -> dict[str, Any]:
    """The body of `GET /session/{id}` for this caller; the holder of a public token sees nothing of how the deployment is made."""
    if caller.scope is not Scope.PUBLIC:
        return view
    return {name: view[name] for name in SESSION if name in view}


def shown_start(answer: dict[str, object]) -> dict[str, object]:
    """The answer to a start, for a page: no names of models, and no `audio_url`, which would open the session to any audio."""
    kept = {name: answer[name] for name in STARTED}
    return {**kept, "conversation": {}} if "conversation" in answer else kept


def shown_event(caller: Caller, event: SessionEvent) -> SessionEvent | None:
    """The event for this caller; None for one that it is not shown."""
    if caller.scope is not Scope.PUBLIC:
        return event
    if event.type in _HIDDEN:
        return None
    fields = _DATA.get(event.type)
    if fields is None:
        return event
    body = json.loads(event.text)
    body["data"] = {name: value for name, value in body["data"].items() if name in fields}
    return replace(event, text=json.dumps(body, separators=(",", ":")))
