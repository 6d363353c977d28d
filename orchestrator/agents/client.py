"""An agent's HTTP surface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from musetalk_agent.protocol import traces
from musetalk_agent.protocol.http import (
    AgentDebug,
    AgentHealth,
    AgentSession,
    AgentStartRequest,
    PublisherMode,
    PublisherRequest,
)
from musetalk_agent.protocol.problems import ErrorCode, Problem, ProblemError

_CALL_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 2.0
_STOP_TIMEOUT_S = 10.0
_UPLOAD_TIMEOUT_S = 300.0
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class AgentLease:
    """The agent process a session belongs to: everything of the session goes there. `headers` may carry its key.

    `name` tells it from others, here and in the store: its address, but for agents that share one.
    """

    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    name: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.base_url)

    @property
    def audio_url(self) -> str:
        """Address of the agent's `/audio`."""
        scheme, _, rest = self.base_url.partition("://")
        return f"{'wss' if scheme == 'https' else 'ws'}://{rest}/audio"


async def _trace(request: httpx.Request) -> None:
    parent = traces.current()
    if parent is not None and request.method == "POST":
        request.headers[traces.HEADER] = parent


class AgentClient:
    """Speaks to agents. Errors they tell are raised as they are; one that does not answer is `agent_unavailable`."""

    def __init__(self) -> None:
        # Proxies of the environment are not for the way between our own services.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(_CALL_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            trust_env=False,
            event_hooks={"request": [_trace]},
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def start(self, lease: AgentLease, request: AgentStartRequest, timeout_s: float) -> AgentSession:
        """Prepares the avatar and starts the session. Cancelling leaves it to the caller to stop the session."""
        body = request.model_dump(mode="json")
        answer = await self._call(lease, "POST", "/session/start", timeout_s=timeout_s, json=body)
        return _parse(AgentSession, answer)

    async def stop(self, lease: AgentLease, session_id: str) -> AgentSession:
        """Stops the session; any number of times."""
        answer = await self._call(lease, "POST", f"/session/{session_id}/stop", timeout_s=_STOP_TIMEOUT_S)
        return _parse(AgentSession, answer)

    async def session(self, lease: AgentLease, session_id: str, timeout_s: float = _CALL_TIMEOUT_S) -> AgentSession:
        """The session as the agent sees it."""
        return _parse(AgentSession, await self._call(lease, "GET", f"/session/{session_id}", timeout_s=timeout_s))

    async def publisher(self, lease: AgentLease, session_id: str, mode: PublisherMode) -> AgentSession:
        """Holds the session's media to one way, or leaves it to the agent."""
        body = PublisherRequest(mode=mode).model_dump(mode="json")
        return _parse(AgentSession, await self._call(lease, "POST", f"/session/{session_id}/publisher", json=body))

    async def debug(self, lease: AgentLease) -> AgentDebug:
        """Weights, configuration, and the funnel of every session."""
        return _parse(AgentDebug, await self._call(lease, "GET", "/debug"))

    async def health(self, lease: AgentLease) -> AgentHealth:
        """Readiness and load, also of an agent that is not ready."""
        answer = await self._send(lease, "GET", "/health", _CONNECT_TIMEOUT_S)
        if answer.status_code not in (200, 503):
            raise _problem(answer)
        return _parse(AgentHealth, answer)

    async def upload(self, lease: AgentLease, body: AsyncIterator[bytes], headers: dict[str, str]) -> dict[str, Any]:
        """Streams an avatar's file to the agent and returns its report. What `body` raises is raised."""
        request = self._http.build_request(
            "POST",
            f"{lease.base_url}/avatars",
            content=body,
            headers={**headers, **lease.headers},
            timeout=httpx.Timeout(_UPLOAD_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
        )
        try:
            answer = await self._http.send(request)
        except httpx.HTTPError as error:
            raise unavailable(type(error).__name__) from error
        if answer.is_error:
            raise _problem(answer)
        report = answer.json()
        if not isinstance(report, dict):
            raise unavailable("its answer is not the protocol's")
        return report

    async def _call(
        self, lease: AgentLease, method: str, path: str, *, timeout_s: float = _CALL_TIMEOUT_S, json: Any = None
    ) -> httpx.Response:
        answer = await self._send(lease, method, path, timeout_s, json)
        if answer.is_error:
            raise _problem(answer)
        return answer

    async def _send(
        self, lease: AgentLease, method: str, path: str, timeout_s: float, json: Any = None
    ) -> httpx.Response:
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
        try:
            return await self._http.request(
                method, lease.base_url + path, json=json, headers=dict(lease.headers), timeout=timeout
            )
        except httpx.HTTPError as error:
            raise unavailable(type(error).__name__) from error


def unavailable(reason: str) -> ProblemError:
    """The agent cannot be used."""
    return ProblemError(
        ErrorCode.AGENT_UNAVAILABLE,
        f"The agent did not answer ({reason}). Check AGENT_URL and AGENT_API_KEY, and that it runs.",
        retry_after_s=2,
    )


def _problem(answer: httpx.Response) -> ProblemError:
    """The agent's own error. Its 401 is not the client's fault and becomes `agent_unavailable`."""
    try:
        told = Problem.model_validate_json(answer.content)
    except ValidationError:
        return unavailable(f"HTTP {answer.status_code}")
    if told.code is ErrorCode.UNAUTHORIZED:
        return unavailable("it refuses our key")
    wait = answer.headers.get("Retry-After", "")
    return ProblemError(
        told.code,
        told.detail,
        field=told.field,
        limit=told.limit,
        value=told.value,
        retry_after_s=int(wait) if wait.isdigit() else None,
    )


def _parse(kind: type[_Model], answer: httpx.Response) -> _Model:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise unavailable("its answer is not the protocol's") from error
