"""Who may call which route, and the ASGI layer that checks it.

`RULES` is the table; a route that it does not list is for operators only. `AuthMiddleware` refuses a request before it reads
the body, adds the security headers, and writes one log line and one metric for each request.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from musetalk_agent.protocol.http_server import MAX_BODY, UPLOAD_S, announced, bounded, dictated, timely, too_large
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import Failures
from orchestrator.audit import AuditLog
from orchestrator.keys import Caller, Credentials, Scope, bearer
from orchestrator.metrics import Metrics
from orchestrator.public_tokens import PREFIX as PUBLIC_PREFIX
from orchestrator.quotas import Quotas
from orchestrator.routes.error_responses import internal, problem_response, unauthorized
from orchestrator.routes.public_access import add_cors, public_caller
from orchestrator.session.manager import SessionRegistry
from orchestrator.session.model import ManagedSession
from orchestrator.session.speech_queue import PAUSE_S

_SESSION = re.compile(r"/session/([^/]+)(?:/([^/]+))?/?")
_PUBLIC_TOKEN = re.compile(r"/public-tokens/[^/]+/?")
_AVATAR = re.compile(r"/avatars/[^/]+(?:/(?P<part>poster\.jpg|clips/[^/]+))?/?")
_RENDER = re.compile(r"/renders/[^/]+(?:/(?P<part>cancel|result\.)[^/]*)?/?")
NOBODY = "-"
"""Stands in the audit log for a caller without a name."""


@dataclass(frozen=True)
class Rule:
    """The scope a route needs, and what the audit log calls it; None: reading, which is audited only when it is denied.

    `public`: the holder of a public token may call it too, for its own sessions.
    """

    scope: Scope
    action: str | None = None
    public: bool = False


RULES: dict[tuple[str, str], Rule] = {
    ("POST", "/token"): Rule(Scope.VIEWER, "token"),
    ("GET", "/voices"): Rule(Scope.VIEWER),
    ("GET", "/session/{session_id}"): Rule(Scope.VIEWER, public=True),
    ("GET", "/session/{session_id}/events"): Rule(Scope.VIEWER, "events", public=True),
    ("GET", "/sessions"): Rule(Scope.STARTER),
    ("POST", "/avatars"): Rule(Scope.STARTER, "avatar"),
    ("GET", "/avatars"): Rule(Scope.STARTER),
    ("GET", "/avatars/{avatar_id}"): Rule(Scope.STARTER),
    ("PATCH", "/avatars/{avatar_id}"): Rule(Scope.STARTER, "avatar_change"),
    ("DELETE", "/avatars/{avatar_id}"): Rule(Scope.STARTER, "avatar_delete"),
    ("GET", "/avatars/{avatar_id}/poster.jpg"): Rule(Scope.STARTER),
    ("PUT", "/avatars/{avatar_id}/clips/{name}"): Rule(Scope.STARTER, "avatar_clip"),
    ("DELETE", "/avatars/{avatar_id}/clips/{name}"): Rule(Scope.STARTER, "avatar_clip_delete"),
    ("POST", "/session/start"): Rule(Scope.STARTER, "start"),
    ("POST", "/session/{session_id}/stop"): Rule(Scope.STARTER, "stop", public=True),
    ("POST", "/session/{session_id}/speak"): Rule(Scope.STARTER, "speak"),
    ("POST", "/session/{session_id}/interrupt"): Rule(Scope.STARTER, "interrupt"),
    ("POST", "/session/{session_id}/publisher"): Rule(Scope.STARTER, "publisher"),
    ("POST", "/session/{session_id}/avatar"): Rule(Scope.STARTER, "session_avatar"),
    ("POST", "/session/{session_id}/action"): Rule(Scope.STARTER, "action"),
    ("POST", "/session/{session_id}/recording"): Rule(Scope.STARTER, "record"),
    ("DELETE", "/session/{session_id}/recording"): Rule(Scope.STARTER, "recording_delete"),
    ("GET", "/session/{session_id}/recording"): Rule(Scope.VIEWER),
    ("GET", "/session/{session_id}/recording.mp4"): Rule(Scope.VIEWER, "recording"),
    ("POST", "/session/{session_id}/chat"): Rule(Scope.STARTER, "chat", public=True),
    ("GET", "/session/{session_id}/messages"): Rule(Scope.VIEWER, public=True),
    ("POST", "/public/session"): Rule(Scope.PUBLIC, "public_start", public=True),
    ("POST", "/public-tokens"): Rule(Scope.STARTER, "public_token"),
    ("GET", "/public-tokens/{token_id}"): Rule(Scope.STARTER),
    ("DELETE", "/public-tokens/{token_id}"): Rule(Scope.STARTER, "public_token_revoke"),
    ("POST", "/v1/audio/speech"): Rule(Scope.STARTER, "speech"),
    ("GET", "/v1/models"): Rule(Scope.VIEWER),
    ("POST", "/renders"): Rule(Scope.STARTER, "render"),
    ("GET", "/renders"): Rule(Scope.STARTER),
    ("GET", "/renders/{render_id}"): Rule(Scope.STARTER),
    ("POST", "/renders/{render_id}/cancel"): Rule(Scope.STARTER, "render_cancel"),
    ("GET", "/renders/{render_id}/result.{suffix}"): Rule(Scope.STARTER),
}
AUDIO = Rule(Scope.STARTER, "audio")
_OPERATORS = Rule(Scope.OPERATOR)


def rule(method: str, path: str) -> tuple[Rule, str | None]:
    """What a request needs, and the session it is about."""
    found = _SESSION.fullmatch(path)
    session_id = found[1] if found and (method, path) not in RULES else None
    if found and session_id:
        path = "/session/{session_id}" + (f"/{found[2]}" if found[2] else "")
    elif _PUBLIC_TOKEN.fullmatch(path):
        path = "/public-tokens/{token_id}"
    elif found := _AVATAR.fullmatch(path):
        clip = (found["part"] or "").startswith("clips/")
        path = "/avatars/{avatar_id}" + ("/clips/{name}" if clip else "/poster.jpg" if found["part"] else "")
    elif found := _RENDER.fullmatch(path):
        path = "/renders/{render_id}" + {"cancel": "/cancel", "result.": "/result.{suffix}"}.get(found["part"], "")
    return RULES.get(("GET" if method == "HEAD" else method, path), _OPERATORS), session_id


def takes_public_tokens(method: str, path: str) -> bool:
    """Whether the holder of a public token may call this."""
    return rule(method, path)[0].public


@dataclass(frozen=True)
class Access:
    """Lets callers in: their keys, scopes, quotas, and the log of what they did."""

    credentials: Credentials
    audit: AuditLog
    quotas: Quotas
    failures: Failures
    clock: Callable[[], float] = time.monotonic

    def caller(self, scope: AsgiScope) -> Caller:
        """Who sends the request. Raises ProblemError `unauthorized`, `rate_limited`."""
        given = bearer(Headers(scope=scope).get("authorization"))
        if given is None:
            raise unauthorized()
        caller = self.credentials.caller(given, address(scope))
        self.failures.admit(address(scope), caller.name if caller else None, self.clock())
        if caller is None:
            raise unauthorized()
        self.quotas.request(caller, self.clock())
        return caller

    def audio_caller(self, scope: AsgiScope, session_id: str) -> Caller | None:
        """Who opens a session's `/audio`; None for the holder of the session's token. Raises as `caller` does, and `forbidden`."""
        token = QueryParams(scope["query_string"]).get("token")
        if token is None:
            return self.speaker(scope, session_id)
        if self.credentials.opens_audio(session_id, token):
            return None
        self.failures.admit(address(scope), None, self.clock())
        raise unauthorized()

    def speaker(self, scope: AsgiScope, session_id: str) -> Caller:
        """Who makes a session speak by a key. The token of `audio_url` does not: text costs money at a voice's provider.

        Raises as `caller` does, and `forbidden`.
        """
        token = QueryParams(scope["query_string"]).get("token")
        if token is not None and "authorization" not in Headers(scope=scope):
            if self.credentials.opens_audio(session_id, token):
                raise ProblemError(
                    ErrorCode.FORBIDDEN,
                    "The token of audio_url opens /audio only: send an API key as Authorization: Bearer KEY.",
                    field="token",
                )
            self.failures.admit(address(scope), None, self.clock())
            raise unauthorized()
        caller = self.caller(scope)
        require(caller, AUDIO)
        return caller


def require(caller: Caller, rule: Rule) -> None:
    """Raises ProblemError `forbidden` when the caller's scope is not enough."""
    if caller.scope is Scope.PUBLIC:
        if rule.public:
            return
        raise ProblemError(
            ErrorCode.FORBIDDEN,
            "A public token starts its sessions, reads and stops them, and sends them chat, and nothing else: "
            f"this needs a key of the scope {rule.scope}.",
            limit=rule.scope.value,
            value=caller.scope.value,
        )
    if not caller.scope.covers(rule.scope):
        raise ProblemError(
            ErrorCode.FORBIDDEN,
            f"The key {caller.name!r} is a {caller.scope}'s; this needs the scope {rule.scope}.",
            limit=rule.scope.value,
            value=caller.scope.value,
        )


def sees(caller: Caller, session: ManagedSession) -> bool:
    """Whether the session exists for this caller: one that starts sessions sees its own."""
    return sees_of(caller, session.order.key, session.order.public_token)


def sees_of(caller: Caller, key: str, token_id: str) -> bool:
    """The same for a session that this key started, or the holder of this public token of it."""
    if caller.scope is Scope.PUBLIC:
        return bool(token_id) and token_id == caller.token_id
    return caller.scope is not Scope.STARTER or key == caller.name


def own(caller: Caller, registry: SessionRegistry, session_id: str) -> None:
    """Raises ProblemError `session_not_found` for another caller's session, as for one that never was."""
    try:
        session = registry.get(session_id)
    except ProblemError:
        return  # the route says so, or where it is
    if not sees(caller, session):
        raise registry.unknown(session_id)


def visible(caller: Caller, sessions: Sequence[ManagedSession]) -> list[ManagedSession]:
    """Those of the sessions that the caller sees."""
    return [session for session in sessions if sees(caller, session)]


def current(scope: AsgiScope) -> Caller:
    """The caller that the guard has let in."""
    return cast("Caller", scope["state"]["caller"])


def address(scope: AsgiScope) -> str:
    """Where the request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else ""


_log = logging.getLogger(__name__)
_DOCS = "/docs"
_DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI starts from a script in its page, which takes keys: no page may frame it."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=(self)",
}
HSTS = "max-age=31536000"
"""For a service that is reached over https: browsers shall not try without, for a year."""
_SESSION_ID = re.compile(r"ses_[A-Za-z0-9]{1,60}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods with a label of their own in the metrics; a client may send any word."""
_DENIED = frozenset({401, 403, 429})


class AuthMiddleware:
    """Refuses HTTP requests that may not be made before anything of them is read. WebSockets are the audio route's own business.

    `is_open` says which paths need no key; `uploads` says which paths' bodies have a limit of their own; `page_policy` is the
    page's Content-Security-Policy; `secure` says that clients come over https; `public_url` is the service's address, where that is
    known. A request that breaks is answered `internal_error`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        metrics: Metrics,
        is_open: Callable[[str], bool],
        uploads: Callable[[str], bool],
        page_policy: str,
        secure: bool,
        public_url: str | None = None,
    ) -> None:
        self._app = app
        self._public_url = public_url
        self._access = access
        self._metrics = metrics
        self._headers = {
            **_HEADERS,
            "Content-Security-Policy": page_policy,
            **({"Strict-Transport-Security": HSTS} if secure else {}),
        }
        self._is_open = is_open
        self._uploads = uploads

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
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
                add_cors(scope, MutableHeaders(scope=message))
                self._note(scope, needed, session_id, status)
            await send(message)

        try:
            refusal = await self._refusal(scope, needed, session_id)
            if refusal is not None:
                scope["state"]["code"] = refusal.code.value
                await problem_response(refusal, scope["path"])(scope, receive, sending)
            elif self._uploads(scope["path"]):
                await self._app(scope, timely(receive, longest_s=UPLOAD_S), sending)
            elif dictated(scope):
                await self._app(scope, timely(receive, PAUSE_S), sending)  # the route bounds its length
            elif announced(scope) > MAX_BODY:
                await problem_response(too_large(), scope["path"])(scope, receive, sending)
            else:
                await self._app(scope, bounded(receive), sending)
        except Exception:  # request boundary: whatever broke, the caller gets an answer and the log the reason
            _log.exception("request failed", extra={"method": scope["method"], "route": _route(scope)})
            if status:
                raise
            await internal(scope["path"])(scope, receive, sending)
        finally:
            if not status:
                self._note(scope, needed, session_id, status)
            self._count(scope, status, time.monotonic() - begun)

    async def _refusal(self, scope: AsgiScope, needed: Rule, session_id: str | None) -> ProblemError | None:
        if self._is_open(scope["path"]) or _is_preflight(scope):
            return None
        try:
            scope["state"]["caller"] = caller = await self._caller(scope)
            require(caller, needed)
            if session_id is not None:
                own(caller, scope["app"].state.context.sessions.registry, session_id)
        except ProblemError as error:
            return error
        return None

    async def _caller(self, scope: AsgiScope) -> Caller:
        """Who sends the request, by a key or by a public token. Raises ProblemError as `Access.caller` and `public_caller` do."""
        given = bearer(Headers(scope=scope).get("authorization"))
        if given is None or not given.startswith(PUBLIC_PREFIX):
            return self._access.caller(scope)
        tokens = scope["app"].state.context.public_tokens
        token_id = tokens.token_id(given)
        if token_id is None:
            self._access.failures.admit(address(scope), None, self._access.clock())
            raise unauthorized()
        caller = await public_caller(tokens, scope, token_id, self._public_url)
        self._access.failures.admit(address(scope), caller.name, self._access.clock())
        self._access.quotas.request(caller, self._access.clock())
        return caller

    def _note(self, scope: AsgiScope, needed: Rule, session_id: str | None, status: int) -> None:
        """One line of the audit log for what changes something, and for what is denied to a key."""
        state = scope["state"]
        caller, code = state.get("caller"), state.get("code")
        if code == ErrorCode.RATE_LIMITED or (caller is None and "authorization" not in Headers(scope=scope)):
            return  # counted in the metrics: a flood of requests must not fill the disk
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

    def _count(self, scope: AsgiScope, status: int, seconds: float) -> None:
        route = _route(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method=method, route=route, status=str(status)).inc()
        self._metrics.request_seconds.labels(route=route).observe(seconds)
        extra = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
        params = scope.get("path_params", {})
        if "session_id" in params:
            extra["session_id"] = str(params["session_id"])[:64]
        _log.info("request", extra=extra)


def _is_preflight(scope: AsgiScope) -> bool:
    return bool(scope["method"] == "OPTIONS" and "access-control-request-method" in Headers(scope=scope))


def _route(scope: AsgiScope) -> str:
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
