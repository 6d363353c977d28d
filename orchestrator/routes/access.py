"""Who may call which route: one table, in which what is not listed is for operators only."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from starlette.datastructures import Headers, QueryParams
from starlette.types import Scope as AsgiScope

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import Failures
from orchestrator.audit import AuditLog
from orchestrator.credentials import Credentials, bearer
from orchestrator.keys import Caller, Scope
from orchestrator.quotas import Quotas
from orchestrator.routes.problems import unauthorized
from orchestrator.session.manager import SessionRegistry
from orchestrator.session.model import ManagedSession

_SESSION = re.compile(r"/session/([^/]+)(?:/([^/]+))?/?")
NOBODY = "-"
"""Stands in the audit log for a caller without a name."""


@dataclass(frozen=True)
class Rule:
    """The scope a route needs, and what the audit log calls it; None: reading, which is audited only when it is denied."""

    scope: Scope
    action: str | None = None


RULES: dict[tuple[str, str], Rule] = {
    ("POST", "/token"): Rule(Scope.VIEWER, "token"),
    ("GET", "/voices"): Rule(Scope.VIEWER),
    ("GET", "/session/{session_id}"): Rule(Scope.VIEWER),
    ("GET", "/session/{session_id}/events"): Rule(Scope.VIEWER, "events"),
    ("GET", "/sessions"): Rule(Scope.STARTER),
    ("POST", "/avatars"): Rule(Scope.STARTER, "avatar"),
    ("POST", "/session/start"): Rule(Scope.STARTER, "start"),
    ("POST", "/session/{session_id}/stop"): Rule(Scope.STARTER, "stop"),
    ("POST", "/session/{session_id}/speak"): Rule(Scope.STARTER, "speak"),
    ("POST", "/session/{session_id}/interrupt"): Rule(Scope.STARTER, "interrupt"),
    ("POST", "/session/{session_id}/publisher"): Rule(Scope.STARTER, "publisher"),
}
AUDIO = Rule(Scope.STARTER, "audio")
_OPERATORS = Rule(Scope.OPERATOR)


def rule(method: str, path: str) -> tuple[Rule, str | None]:
    """What a request needs, and the session it is about."""
    found = _SESSION.fullmatch(path)
    session_id = found[1] if found and (method, path) not in RULES else None
    if found and session_id:
        path = "/session/{session_id}" + (f"/{found[2]}" if found[2] else "")
    return RULES.get(("GET" if method == "HEAD" else method, path), _OPERATORS), session_id


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
    if not caller.scope.covers(rule.scope):
        raise ProblemError(
            ErrorCode.FORBIDDEN,
            f"The key {caller.name!r} is a {caller.scope}'s; this needs the scope {rule.scope}.",
            limit=rule.scope.value,
            value=caller.scope.value,
        )


def sees(caller: Caller, session: ManagedSession) -> bool:
    """Whether the session exists for this caller: one that starts sessions sees its own."""
    return caller.scope is not Scope.STARTER or session.order.key == caller.name


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
