"""HTTP client of the agents' API."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, cast

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from musetalk_agent.protocol import traces
from musetalk_agent.protocol.http import (
    FILM_ENTRY,
    FILM_LOG,
    AgentActionRequest,
    AgentAvatarRequest,
    AgentDebug,
    AgentHealth,
    AgentRecordingRequest,
    AgentSession,
    AgentStartRequest,
    FilmEntry,
    FilmPosition,
    PublisherMode,
    PublisherRequest,
)
from musetalk_agent.protocol.preparation_messages import AgentPrepareRequest, PreparedAvatar, PrepareLine
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError

_CALL_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 2.0
HEALTH_TIMEOUT_S = 2.0
"""An agent that hangs holds up a start for no longer while others are well."""
_STOP_TIMEOUT_S = 10.0
_UPLOAD_TIMEOUT_S = 300.0
_RECORD_TIMEOUT_S = 15.0
"""An encoder starts within ten seconds, or not at all."""
_STREAM_SILENCE_S = 20.0
"""While it prepares an avatar the agent says something every two seconds."""
_FILM_SILENCE_S = 6.0
"""The agent ends an answer after four seconds, whether something came or not."""
MAX_FRAGMENT = 32 << 20
"""Bytes of a fragment: a few pictures."""
MAX_ANSWER = 4 << 20
"""Bytes of an answer: `/debug` of an agent with a hundred sessions takes 300 KB."""
_MAX_DETAIL = 2000
_LANES = {"health": 64, "state": 128, "control": 256, "start": 512, "upload": 64, "film": 512}
"""Connections of each kind of call. Each kind has its own: slow starts never hold up a look at an agent's health."""
IDLE_S = 2.5
"""How long an idle connection is kept: half as long as the agent keeps it, which else closes it while a call is on its way."""
_BUSY_RETRY_S = 5
_NOT_READY = 503
_LAST_PORT = 65535
_SECONDS = re.compile(r"[0-9]{1,5}")
_Model = TypeVar("_Model", bound=BaseModel)
_Scalar = TypeVar("_Scalar", str | None, str | int | float | None)


@dataclass(frozen=True)
class AgentLease:
    """The agent process a session belongs to: everything of the session goes there. `headers` may carry its key.

    `name` identifies it, here and in the store: its address, but for agents that share one.
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


@cache
def public_trust() -> ssl.SSLContext:
    """Whom the clients of agents trust: the public authorities, whatever the environment says. They are read once a process, for 20
    to 80 ms. All share the context: change nothing in it."""
    return httpx.create_ssl_context(trust_env=False)


class AgentFailed(ProblemError):
    """`agent_unavailable` after the agent was reached: it may have begun, or died of, what it was asked."""


class AgentClient:
    """HTTP client of the agents. Their errors are raised as they are; one that does not answer in time is `agent_unavailable`.

    Every call has a deadline for the whole answer, and at most `MAX_ANSWER` bytes of it are read.
    """

    def __init__(self) -> None:
        def lane(connections: int) -> httpx.AsyncClient:
            # Proxies of the environment are not for the way between our own services.
            limits = httpx.Limits(max_connections=connections, max_keepalive_connections=20, keepalive_expiry=IDLE_S)
            return httpx.AsyncClient(
                verify=public_trust(),
                limits=limits,
                trust_env=False,
                event_hooks={"request": [_trace]},
                headers={"Accept-Encoding": "identity"},
            )

        self._lanes = {name: lane(connections) for name, connections in _LANES.items()}

    async def aclose(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(client.aclose() for client in self._lanes.values()), return_exceptions=True)

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

    async def avatar(
        self, lease: AgentLease, session_id: str, request: AgentAvatarRequest, timeout_s: float
    ) -> AgentSession:
        """Shows another avatar in the session, or plays a clip of it. Cancelling before it is shown leaves the old one."""
        body = request.model_dump(mode="json")
        path = f"/session/{session_id}/{'action' if isinstance(request, AgentActionRequest) else 'avatar'}"
        return _parse(AgentSession, await self._call(lease, "POST", path, timeout_s=timeout_s, json=body))

    async def record(self, lease: AgentLease, session_id: str, request: AgentRecordingRequest) -> FilmPosition:
        """Begins a part of the session's film or ends it; answers with how far the agent's log has come then."""
        body = request.model_dump(mode="json")
        path = f"/session/{session_id}/recording"
        answer = await self._call(lease, "POST", path, json=body, timeout_s=_RECORD_TIMEOUT_S)
        return _parse(FilmPosition, answer)

    async def film(
        self, lease: AgentLease, session_id: str, stored: int, log_id: str
    ) -> AsyncGenerator[tuple[str, int, FilmEntry, bytes]]:
        """Entries of the session's film as they come, for some seconds: the log's name, number, kind, payload.

        The agent forgets those up to number `stored` of the log `log_id`. Raises ProblemError.
        """
        path = f"/session/{session_id}/recording?after={stored}&log_id={log_id}"
        timeout = httpx.Timeout(_FILM_SILENCE_S, connect=_CONNECT_TIMEOUT_S)
        request = self._lanes["film"].build_request(
            "GET", lease.base_url + path, headers=dict(lease.headers), timeout=timeout
        )
        try:
            answer = await self._lanes["film"].send(request, stream=True)
            try:
                if answer.is_error:
                    raise _problem(await _read(answer))
                name, waiting = answer.headers.get(FILM_LOG, ""), bytearray()
                async with aclosing(cast("AsyncGenerator[bytes]", answer.aiter_raw())) as coming:
                    async for part in coming:
                        waiting += part
                        for entry in _entries(waiting):
                            yield name, *entry
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            raise _failed(type(error).__name__) from error

    async def debug(self, lease: AgentLease) -> AgentDebug:
        """Weights, configuration, and the funnel of every session."""
        return _parse(AgentDebug, await self._call(lease, "GET", "/debug"))

    async def health(self, lease: AgentLease, timeout_s: float = HEALTH_TIMEOUT_S) -> AgentHealth:
        """Readiness and load, also of an agent that is not ready."""
        answer = await self._call(lease, "GET", "/health", timeout_s=timeout_s, not_ready=True)
        if answer.status_code not in (200, _NOT_READY):
            raise _problem(answer)
        return _parse(AgentHealth, answer)

    async def upload(self, lease: AgentLease, body: AsyncIterator[bytes], headers: dict[str, str]) -> dict[str, Any]:
        """Streams an avatar's file to the agent and returns its report. What `body` raises is raised."""
        answer = await self._call(lease, "POST", "/avatars", timeout_s=_UPLOAD_TIMEOUT_S, content=body, headers=headers)
        report = _json(answer)
        if not isinstance(report, dict):
            raise _strange()
        return report

    async def prepare(
        self, lease: AgentLease, request: AgentPrepareRequest, progress: Callable[[float], None]
    ) -> PreparedAvatar:
        """Has an avatar prepared, however long that takes; `progress` gets 0 … 1. Cancelling ends it, unless others wait for it.

        Raises ProblemError: the agent's own, or `agent_unavailable`.
        """
        body = request.model_dump(mode="json")
        async for line in self._lines(lease, "/avatars/prepare", body):
            try:
                said = PrepareLine.model_validate_json(line)
            except ValidationError as error:
                raise _strange() from error
            if said.problem is not None:
                raise _of_agent(said.problem, None)
            if said.prepared is not None:
                return said.prepared
            if said.progress is not None:
                progress(said.progress)
        raise _failed("its answer broke off")

    async def clip(self, lease: AgentLease, avatar_id: str) -> AsyncGenerator[bytes]:
        """The bytes of a clip that the agent has. Raises ProblemError."""
        async with aclosing(self._stream(lease, "GET", f"/avatars/{avatar_id}/source", None)) as coming:
            async for part in coming:
                yield part

    async def _lines(self, lease: AgentLease, path: str, body: object) -> AsyncGenerator[bytes]:
        waiting = bytearray()
        async with aclosing(self._stream(lease, "POST", path, body)) as coming:
            async for part in coming:
                waiting += part
                *whole, rest = bytes(waiting).split(b"\n")
                waiting = bytearray(rest)
                if len(waiting) > 2 * MAX_ANSWER:
                    raise _strange()
                for line in whole:
                    yield line

    async def _stream(self, lease: AgentLease, method: str, path: str, body: object) -> AsyncGenerator[bytes]:
        """An answer as it comes. Raises ProblemError: the agent's own, or `agent_unavailable` when nothing comes for a while."""
        client = self._lanes["upload"]
        timeout = httpx.Timeout(_STREAM_SILENCE_S, connect=_CONNECT_TIMEOUT_S)
        request = client.build_request(
            method, lease.base_url + path, json=body, headers=dict(lease.headers), timeout=timeout
        )
        try:
            answer = await client.send(request, stream=True)
            try:
                if answer.is_error:
                    raise _problem(await _read(answer))
                async with aclosing(cast("AsyncGenerator[bytes]", answer.aiter_raw())) as coming:
                    async for part in coming:
                        yield part
            finally:
                await answer.aclose()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _failed(type(error).__name__) from error

    async def _call(
        self,
        lease: AgentLease,
        method: str,
        path: str,
        *,
        timeout_s: float = _CALL_TIMEOUT_S,
        json: Any = None,
        content: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        not_ready: bool = False,
    ) -> httpx.Response:
        """The answer, read whole within `timeout_s`. `not_ready`: a 503 is an answer too.

        Raises ProblemError, also the agent's own; what `content` raises is raised.
        """
        client = self._lanes[_lane(method, path)]
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
        try:
            async with asyncio.timeout(timeout_s):
                request = client.build_request(
                    method,
                    lease.base_url + path,
                    json=json,
                    content=content,
                    headers={**(headers or {}), **lease.headers},
                    timeout=timeout,
                )
                if (request.url.port or 0) > _LAST_PORT:
                    raise httpx.InvalidURL(f"port {request.url.port}")  # what is below would raise an OverflowError
                answer = await _read(await client.send(request, stream=True))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise unavailable(type(error).__name__) from error
        except httpx.PoolTimeout as error:
            raise ProblemError(
                ErrorCode.AT_CAPACITY,
                f"{_LANES[_lane(method, path)]} calls of this kind wait for agents: try again.",
                retry_after_s=_BUSY_RETRY_S,
            ) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise _failed(type(error).__name__) from error
        if answer.is_error and not (not_ready and answer.status_code == _NOT_READY):
            raise _problem(answer)
        return answer


def _entries(waiting: bytearray) -> Iterator[tuple[int, FilmEntry, bytes]]:
    """Takes the whole entries out of `waiting`. Raises AgentFailed for an invalid one."""
    while len(waiting) >= FILM_ENTRY.size:
        number, kind, size = FILM_ENTRY.unpack_from(waiting)
        if kind not in tuple(FilmEntry) or size > MAX_FRAGMENT:
            raise _strange()
        if len(waiting) < FILM_ENTRY.size + size:
            return
        payload = bytes(waiting[FILM_ENTRY.size : FILM_ENTRY.size + size])
        del waiting[: FILM_ENTRY.size + size]
        yield number, FilmEntry(kind), payload


def _lane(method: str, path: str) -> str:
    """The kind of call, which decides whose connections it shares."""
    known = {"/health": "health", "/session/start": "start", "/avatars": "upload"}
    if path.endswith(("/avatar", "/action")):
        return "start"  # it may take as long
    return known.get(path) or ("state" if method == "GET" else "control")


async def _read(answer: httpx.Response) -> httpx.Response:
    """The answer with its body, not decompressed: no encoding was asked for. Raises ProblemError for one that is too long."""
    parts: list[bytes] = []
    size = 0
    try:
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise _failed("its answer is compressed")
        async with aclosing(cast("AsyncGenerator[bytes]", answer.aiter_raw())) as coming:
            async for part in coming:
                size += len(part)
                if size > MAX_ANSWER:
                    raise _failed(f"its answer passes {MAX_ANSWER} bytes")
                parts.append(part)
    finally:
        await answer.aclose()
    headers = {name: value for name, value in answer.headers.items() if name.lower() == "retry-after"}
    return httpx.Response(answer.status_code, headers=headers, content=b"".join(parts))


def unavailable(reason: str) -> ProblemError:
    """The agent cannot be used."""
    return ProblemError(ErrorCode.AGENT_UNAVAILABLE, _unanswered(reason), retry_after_s=2)


def _failed(reason: str) -> AgentFailed:
    return AgentFailed(ErrorCode.AGENT_UNAVAILABLE, _unanswered(reason), retry_after_s=2)


def _strange() -> AgentFailed:
    return _failed("its answer is not the protocol's")


def _unanswered(reason: str) -> str:
    return f"The agent did not answer ({reason}). Check AGENT_URL and AGENT_API_KEY, and that it runs."


def _problem(answer: httpx.Response) -> ProblemError:
    """The agent's own error. Its 401 is not the client's fault and becomes `agent_unavailable`."""
    try:
        reported = Problem.model_validate(_json(answer))
    except (ValidationError, AgentFailed):
        reason = f"HTTP {answer.status_code}"  # a proxy's word; one that lost the agent meanwhile says 502 or 503
        return unavailable(reason) if answer.status_code < 500 else _failed(reason)
    if reported.code is ErrorCode.UNAUTHORIZED:
        return unavailable("it refuses our key")
    wait = answer.headers.get("Retry-After", "")
    return _of_agent(reported, int(wait) if _SECONDS.fullmatch(wait) else None)


def _of_agent(reported: Problem, retry_after_s: int | None) -> ProblemError:
    return ProblemError(
        reported.code,
        reported.detail[:_MAX_DETAIL],
        field=_cut(reported.field),
        limit=_cut(reported.limit),
        value=_cut(reported.value),
        retry_after_s=retry_after_s,
    )


def _cut(value: _Scalar) -> _Scalar:
    """Bounded, for an agent's words go on to the client."""
    return cast("_Scalar", value[:_MAX_DETAIL]) if isinstance(value, str) else value


def _parse(kind: type[_Model], answer: httpx.Response) -> _Model:
    try:
        return kind.model_validate(_json(answer))
    except ValidationError as error:
        raise _strange() from error


def _json(answer: httpx.Response) -> Any:
    """The JSON of an answer, without NaN and infinities, which no answer of ours can hold. Raises AgentFailed."""
    try:
        return from_json(answer.content, allow_inf_nan=False)
    except ValueError as error:
        raise _strange() from error
