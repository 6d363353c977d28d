"""The orchestrator's HTTP surface as far as a bot needs it, and its errors."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

import httpx

from musetalk_agent.protocol.retries import CALL, NO_ANSWER, RetryVerdict, Schedule, Tries, retry_after_s, verdict


class OrchestratorError(Exception):
    """A request was refused or a session is over. `code` is one of the orchestrator's `docs/protocol.md`, or `network`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


def problem(status: int, body: str) -> tuple[str, str]:
    """Code and sentence of a refusal; `http_STATUS` where the answer is no problem+json."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    return str(answer.get("code", f"http_{status}")), str(answer.get("detail", "The request was refused."))


START_S = 200.0
"""A new avatar is prepared first; the orchestrator itself gives up after 180 s by default."""
STOP_S = 10.0
KINDS = ("avatar-ses_", "voice-ses_")
"""How the identities of an avatar and of the orchestrator's voice begin."""


@dataclass(frozen=True)
class StartedSession:
    """A started session. Its identities are those under which its audio comes into the room."""

    session_id: str
    room: str
    avatar_identity: str
    audio_url: str

    @property
    def identities(self) -> frozenset[str]:
        """The avatar, and the orchestrator's own voice, which stands in for it."""
        return frozenset({self.avatar_identity, f"voice-{self.session_id}"})


class SessionClient:
    """Starts and stops sessions. A call that may succeed later is made again as `schedule` says; the calls are safe to repeat."""

    def __init__(self, url: str, api_key: str, *, schedule: Schedule = CALL) -> None:
        self._schedule = schedule
        self._http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {api_key}"})

    async def start(self, order: Mapping[str, object]) -> StartedSession:
        """Starts a session. Raises OrchestratorError. Cancelled, it may leave one behind, which ends by itself."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        answer = await self._call("/session/start", order, START_S, Tries(self._schedule), key)
        fields = ("session_id", "room", "avatar_identity", "audio_url")
        return StartedSession(**{name: str(answer[name]) for name in fields})

    async def stop(self, session_id: str) -> None:
        """Ends a session; one that is over already is no error. Raises OrchestratorError when the orchestrator cannot be asked."""
        try:
            tries = Tries(replace(self._schedule, total_s=min(self._schedule.total_s, STOP_S)))
            await self._call(f"/session/{session_id}/stop", None, STOP_S, tries)
        except OrchestratorError as error:
            if error.code != "session_not_found":
                raise

    async def act(self, session_id: str, name: str, *, loop: bool) -> None:
        """Plays a clip of the avatar. Raises OrchestratorError."""
        tries = Tries(self._schedule)
        await self._call(f"/session/{session_id}/action", {"name": name, "loop": loop}, START_S, tries)

    async def show(self, session_id: str, avatar_id: str) -> None:
        """Shows another avatar of the library. Raises OrchestratorError."""
        await self._call(f"/session/{session_id}/avatar", {"avatar_id": avatar_id}, START_S, Tries(self._schedule))

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def _call(
        self,
        path: str,
        body: Mapping[str, object] | None,
        timeout_s: float,
        tries: Tries,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, object]:
        while True:
            try:
                answer = await self._http.post(path, json=body, timeout=timeout_s, headers=dict(headers or {}))
            except httpx.HTTPError as error:
                status, asked_s = NO_ANSWER, None
                refusal = OrchestratorError(
                    "network", f"{self._http.base_url} does not answer: {str(error) or type(error).__name__}"
                )
            else:
                if answer.is_success:
                    return _object(answer.text)
                status, asked_s = answer.status_code, retry_after_s(answer.headers.get("Retry-After"))
                refusal = OrchestratorError(*problem(status, answer.text))
            if verdict(status, refusal.code) is RetryVerdict.FINAL:
                raise refusal
            wait_s = tries.next_wait_s(asked_s)
            if wait_s is None:
                raise refusal
            await asyncio.sleep(wait_s)


def _object(text: str) -> dict[str, object]:
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
