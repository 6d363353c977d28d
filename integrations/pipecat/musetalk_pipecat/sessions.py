"""The orchestrator's HTTP surface, as far as a bot needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from musetalk_pipecat.errors import AvatarError

START_S = 200.0
"""A new avatar is prepared first; the orchestrator itself gives up after 180 s by default."""
STOP_S = 10.0


@dataclass(frozen=True)
class AvatarSession:
    """A started session. Its identities are those under which its sound comes into the room."""

    session_id: str
    room: str
    avatar_identity: str
    audio_url: str

    @property
    def identities(self) -> frozenset[str]:
        """The avatar, and the orchestrator's own voice, which stands in for it."""
        return frozenset({self.avatar_identity, f"voice-{self.session_id}"})


class Sessions:
    """Starts and stops sessions."""

    def __init__(self, url: str, api_key: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {api_key}"})

    async def start(self, order: Mapping[str, object]) -> AvatarSession:
        """The session, its avatar in the room. Raises AvatarError. Cancelled, it may leave one behind, which ends by itself."""
        answer = await self._post("/session/start", order, START_S)
        fields = ("session_id", "room", "avatar_identity", "audio_url")
        return AvatarSession(**{name: str(answer[name]) for name in fields})

    async def stop(self, session_id: str) -> None:
        """Ends a session; one that is over already is no error. Raises AvatarError when the orchestrator cannot be asked."""
        try:
            await self._post(f"/session/{session_id}/stop", None, STOP_S)
        except AvatarError as error:
            if error.code != "session_not_found":
                raise

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def _post(self, path: str, body: Mapping[str, object] | None, timeout_s: float) -> dict[str, object]:
        try:
            answer = await self._http.post(path, json=body, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise AvatarError(
                "network", f"{self._http.base_url} does not answer: {error or type(error).__name__}"
            ) from error
        told = _object(answer.text)
        if not answer.is_success:
            code, detail = (
                told.get("code", f"http_{answer.status_code}"),
                told.get("detail", "The request was refused."),
            )
            raise AvatarError(str(code), str(detail))
        return told


def _object(text: str) -> dict[str, object]:
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
