"""The calls of the orchestrator that a plugin needs."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from livekit.agents import APIConnectOptions

from musetalk_agent.protocol.retries import NO_ANSWER, RetryVerdict, retry_after_s, verdict

START_TIMEOUT_S = 180.0
"""An avatar that is new to the service is prepared first."""
_STOP_TIMEOUT_S = 10.0
_WAIT_MOST_S = 10.0
"""A longer `Retry-After` is an error at once: the caller may try elsewhere."""


class MuseTalkError(Exception):
    """The orchestrator said no, or could not be reached.

    Attributes:
        code: its stable code, such as `at_capacity`; `unreachable` without an answer.
        status: of HTTP; 0 without an answer.
    """

    def __init__(self, code: str, detail: str, status: int = NO_ANSWER, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.status, self.retry_after_s = code, detail, status, retry_after_s

    @property
    def passing(self) -> bool:
        """The same call may succeed later."""
        return verdict(self.status, self.code) is not RetryVerdict.FINAL


@dataclass(frozen=True)
class OrchestratorClient:
    """Where it is, and the key for it.

    Which failed calls are made again is the protocol's own table; how often and after how long, `retries` says, or the answer's
    `Retry-After`. The calls are safe to repeat.
    """

    url: str
    api_key: str = field(repr=False)
    retries: APIConnectOptions

    async def start(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /session/start`. Raises `MuseTalkError`. Cancelling leaves a session that ends when its speaker does not come."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return await self._call("/session/start", body, key, START_TIMEOUT_S)

    async def stop(self, session_id: str) -> None:
        """`POST /session/{id}/stop`. Raises `MuseTalkError`."""
        await self._call(f"/session/{session_id}/stop", None, {}, _STOP_TIMEOUT_S)

    async def act(self, session_id: str, name: str, *, loop: bool) -> None:
        """`POST /session/{id}/action`. Raises `MuseTalkError`."""
        await self._call(f"/session/{session_id}/action", {"name": name, "loop": loop}, {}, START_TIMEOUT_S)

    async def show(self, session_id: str, avatar_id: str) -> None:
        """`POST /session/{id}/avatar`. Raises `MuseTalkError`."""
        await self._call(f"/session/{session_id}/avatar", {"avatar_id": avatar_id}, {}, START_TIMEOUT_S)

    async def _call(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str], timeout_s: float
    ) -> dict[str, Any]:
        for attempt in range(self.retries.max_retry + 1):
            try:
                return await self._post(path, body, headers, timeout_s)
            except MuseTalkError as error:
                asked_s = error.retry_after_s or 0.0
                if not error.passing or attempt == self.retries.max_retry or asked_s > _WAIT_MOST_S:
                    raise
                await asyncio.sleep(max(asked_s, self.retries.retry_interval))
        raise AssertionError("the last try returns or raises")

    async def _post(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str], timeout_s: float
    ) -> dict[str, Any]:
        own = {"Authorization": f"Bearer {self.api_key}", **headers}
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=self.retries.timeout)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=True) as http,
                http.post(self.url.rstrip("/") + path, json=body, headers=own) as answer,
            ):
                text = await answer.text(errors="replace")
                if answer.status >= 400:
                    raise _error(answer, text)
                return dict(json.loads(text)) if text else {}
        except (aiohttp.ClientError, TimeoutError, TypeError, ValueError) as error:
            text = f"{self.url} did not answer as an orchestrator does ({error!r}); check orchestrator_url"
            raise MuseTalkError("unreachable", text) from error


def _error(answer: aiohttp.ClientResponse, text: str) -> MuseTalkError:
    try:
        answered = json.loads(text)
    except ValueError:
        answered = None
    problem = answered if isinstance(answered, dict) else {}
    return MuseTalkError(
        str(problem.get("code", f"http_{answer.status}")),
        str(problem.get("detail", answer.reason)),
        answer.status,
        retry_after_s(answer.headers.get("Retry-After")),
    )
