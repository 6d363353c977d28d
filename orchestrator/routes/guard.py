"""The ASGI layer around every HTTP route: who may come in, headers on the way out, one log line and one metric each."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from musetalk_agent.protocol.bodies import MAX_BODY, UPLOAD_S, announced, bounded, dictated, timely, too_large
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics
from orchestrator.routes.access import NOBODY, Access, Rule, own, require, rule
from orchestrator.routes.problems import internal, problem_response
from orchestrator.session.speech_queue import PAUSE_S

_log = logging.getLogger(__name__)
_DOCS = "/docs"
_DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI starts from a script in its page, which takes keys: it is in nobody's frame."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
}
HSTS = "max-age=31536000"
"""For a service that is reached over https: browsers shall not try without, for a year."""
_SESSION_ID = re.compile(r"ses_[A-Za-z0-9]{1,60}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""What is told apart in the metrics; a client may send any word."""
_DENIED = frozenset({401, 403, 429})


class Guard:
    """Refuses HTTP requests that may not be made before anything of them is read. WebSockets are the audio route's own business.

    `is_open` tells by path what needs no key; `uploads` are the paths whose bodies have a limit of their own; `page_policy` is the
    page's Content-Security-Policy; `secure` says that clients come over https. A request that breaks is answered `internal_error`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        metrics: Metrics,
        is_open: Callable[[str], bool],
        uploads: frozenset[str],
        page_policy: str,
        secure: bool,
    ) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics
        self._headers = {
            **_HEADERS,
            "Content-Security-Policy": page_policy,
            **({"Strict-Transport-Security": HSTS} if secure else {}),
        }
        self._is_open = is_open
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        status = 0
        scope.setdefault("state", {})
        needed, session_id = rule(scope["method"], scope["path"])

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(scope["path"], MutableHeaders(scope=message), self._headers)
                self._note(scope, needed, session_id, status)
            await send(message)

        try:
            refusal = self._refusal(scope, needed, session_id)
            if refusal is not None:
                scope["state"]["code"] = refusal.code.value
                await problem_response(refusal)(scope, receive, sending)
            elif scope["path"] in self._uploads:
                await self._app(scope, timely(receive, longest_s=UPLOAD_S), sending)
            elif dictated(scope):
                await self._app(scope, timely(receive, PAUSE_S), sending)  # the route bounds its length
            elif announced(scope) > MAX_BODY:
                await problem_response(too_large())(scope, receive, sending)
            else:
                await self._app(scope, bounded(receive), sending)
        except Exception:  # request boundary: whatever broke, the caller gets an answer and the log the reason
            _log.exception("request failed", extra={"method": scope["method"], "route": _route(scope)})
            if status:
                raise
            await internal()(scope, receive, sending)
        finally:
            if not status:
                self._note(scope, needed, session_id, status)
            self._count(scope, status, time.monotonic() - begun)

    def _refusal(self, scope: Scope, needed: Rule, session_id: str | None) -> ProblemError | None:
        if self._is_open(scope["path"]) or _is_preflight(scope):
            return None
        try:
            scope["state"]["caller"] = caller = self._access.caller(scope)
            require(caller, needed)
            if session_id is not None:
                own(caller, scope["app"].state.context.sessions.registry, session_id)
        except ProblemError as error:
            return error
        return None

    def _note(self, scope: Scope, needed: Rule, session_id: str | None, status: int) -> None:
        """One line of the audit log for what changes something, and for what is denied to a key."""
        state = scope["state"]
        caller, code = state.get("caller"), state.get("code")
        if code == ErrorCode.RATE_LIMITED or (caller is None and "authorization" not in Headers(scope=scope)):
            return  # counted in the metrics: whoever floods the service shall not fill the disk
        if status in _DENIED:
            outcome = "denied"
        elif needed.action is None or caller is None:
            return
        else:
            outcome = "aborted" if not status else "ok" if status < 400 else "failed"
        self._access.audit.note(
            caller.name if caller else NOBODY,
            needed.action or "read",
            outcome,
            session_id=state.get("session_id") or _id(session_id),
            code=code,
        )

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method=method, route=route, status=str(status)).inc()
        self._metrics.request_seconds.labels(route=route).observe(seconds)
        extra = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
        params = scope.get("path_params", {})
        if "session_id" in params:
            extra["session_id"] = str(params["session_id"])[:64]
        _log.info("request", extra=extra)


def _is_preflight(scope: Scope) -> bool:
    return bool(scope["method"] == "OPTIONS" and "access-control-request-method" in Headers(scope=scope))


def _route(scope: Scope) -> str:
    """The route's pattern, never the path: bounded in number, and free of ids."""
    return str(getattr(scope.get("route"), "path", "(none)"))


def _id(session_id: str | None) -> str | None:
    """Of a known session or not: what a caller writes there is no name of anybody as long as it looks like an id."""
    return session_id if session_id and _SESSION_ID.fullmatch(session_id) else None


def _add_headers(path: str, headers: MutableHeaders, always: Mapping[str, str]) -> None:
    if path == _DOCS:
        headers.setdefault("Content-Security-Policy", _DOCS_POLICY)
    for name, value in always.items():
        headers.setdefault(name, value)
    headers.setdefault("X-Frame-Options", "DENY")
    if not headers.get("cache-control"):
        headers["Cache-Control"] = "no-cache"
