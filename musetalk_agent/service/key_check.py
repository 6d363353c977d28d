"""The agent's key, and the ASGI layer that checks it before anything of a body is read, and bounds bodies."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from musetalk_agent.protocol.http_server import MAX_BODY, UPLOAD_S, announced, bounded, timely, too_large
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import MEDIA_TYPE, ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import Failures

_HOLDER = "orchestrator"


class KeyChecker:
    """Compares keys in constant time, and slows down who tries wrong ones.

    Args:
        clock: seconds that rise.
    """

    def __init__(self, key: SecretStr, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = key.get_secret_value().encode()
        self._clock = clock
        self._failures = Failures()

    def admit(self, header: str | None, client: tuple[str, int] | None) -> None:
        """Lets a request in whose `Authorization` header carries the key. Raises ProblemError `unauthorized`, `rate_limited`."""
        scheme, _, given = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise _unauthorized()
        right = hmac.compare_digest(given.encode(errors="replace"), self._key)
        self._failures.admit(client[0] if client else "", _HOLDER if right else None, self._clock())
        if not right:
            raise _unauthorized()


def _unauthorized() -> ProblemError:
    return ProblemError(ErrorCode.UNAUTHORIZED, "Send the agent's key: Authorization: Bearer AGENT_API_KEY.")


UPLOADS = "/avatars"
_HEALTH = "/health"
_METRICS = "/metrics"


class AgentAuthMiddleware:
    """Lets requests in that carry the key. `/health` needs none, and `/metrics` none where `open_metrics` is set.

    WebSockets are the audio route's own business.
    """

    def __init__(self, app: ASGIApp, *, key_checker: KeyChecker, open_metrics: bool) -> None:
        self._app = app
        self._key_checker = key_checker
        self._open = {_HEALTH, _METRICS} if open_metrics else {_HEALTH}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            if scope["path"] not in self._open:
                self._key_checker.admit(Headers(scope=scope).get("authorization"), scope.get("client"))
            if scope["path"] == UPLOADS:
                await self._app(scope, timely(receive, longest_s=UPLOAD_S), sending)
                return
            if announced(scope) > MAX_BODY:
                raise too_large()
            await self._app(scope, bounded(receive), sending)
        except ProblemError as error:
            if began:
                raise
            await problem_response(error)(scope, receive, send)


def problem_response(error: ProblemError) -> JSONResponse:
    """The response for this error."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
    body = Problem.of(error).model_dump(exclude_none=True)
    return JSONResponse(body, error.status, headers, media_type=MEDIA_TYPE)
