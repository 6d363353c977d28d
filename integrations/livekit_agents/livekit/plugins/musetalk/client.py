"""The two calls of the orchestrator that a plugin needs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from livekit.agents import APIConnectOptions

START_TIMEOUT_S = 180.0
"""An avatar that is new to the service is prepared first."""
_STOP_TIMEOUT_S = 10.0
_WAIT_MOST_S = 10.0


class MuseTalkError(Exception):
    """The orchestrator said no, or could not be reached.

    Attributes:
        code: its stable code, such as `at_capacity`; `unreachable` when nobody answered.
        status: of HTTP; 0 when nobody answered.
    """

    def __init__(self, code: str, detail: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.status, self.retry_after_s = code, detail, status, retry_after_s

    @property
    def passing(self) -> bool:
        """The same call may succeed later."""
        return self.status in (0, 502, 503, 504) or (self.status == 429 and self.retry_after_s is not None)


@dataclass(frozen=True)
class Orchestrator:
    """Where it is, and the key for it. A failed call is made again as `retries` says; starts are safe to repeat."""

    url: str
    api_key: str = field(repr=False)
    retries: APIConnectOptions

    async def start(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /session/start`. Raises `MuseTalkError`. Cancelling leaves a session that ends when its speaker does not come."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        for attempt in range(self.retries.max_retry + 1):
            try:
                return await self._post("/session/start", body, key, START_TIMEOUT_S)
            except MuseTalkError as error:
                if not error.passing or attempt == self.retries.max_retry:
                    raise
                await asyncio.sleep(min(_WAIT_MOST_S, error.retry_after_s or self.retries.retry_interval))
        raise AssertionError("the last try returns or raises")

    async def stop(self, session_id: str) -> None:
        """`POST /session/{id}/stop`. Raises `MuseTalkError`."""
        await self._post(f"/session/{session_id}/stop", None, {}, _STOP_TIMEOUT_S)

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
                told = await answer.json(content_type=None) if answer.content_length != 0 else {}
                if answer.status < 400:
                    return dict(told)
                raise _error(answer, told)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            text = f"{self.url} did not answer as an orchestrator does ({error!r}); check orchestrator_url"
            raise MuseTalkError("unreachable", text) from error


def _error(answer: aiohttp.ClientResponse, told: object) -> MuseTalkError:
    problem = told if isinstance(told, dict) else {}
    after = answer.headers.get("Retry-After", "")
    return MuseTalkError(
        str(problem.get("code", f"http_{answer.status}")),
        str(problem.get("detail", answer.reason)),
        answer.status,
        float(after) if after.isdigit() else None,
    )
