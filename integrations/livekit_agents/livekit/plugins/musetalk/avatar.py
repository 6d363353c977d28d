"""`AvatarSession`, as the hosted avatars of livekit-agents have it."""

from __future__ import annotations

import logging
import os
from typing import Any

from livekit import rtc
from livekit.agents import DEFAULT_API_CONNECT_OPTIONS, AgentSession, APIConnectOptions, get_job_context
from livekit.agents.voice.avatar import AvatarSession as BaseAvatarSession

from .client import MuseTalkError, OrchestratorClient
from .output import AvatarOutput

log = logging.getLogger("livekit.plugins.musetalk")

SAMPLE_RATE = 24_000


class AvatarSession(BaseAvatarSession[str]):
    """An avatar that speaks for an agent, in the agent's own room.

    Args:
        orchestrator_url: of the MuseTalk orchestrator, which uses the same LiveKit; by default `MUSETALK_URL`.
        api_key: one of its keys with the scope `starter`; by default `MUSETALK_API_KEY`.
        idle_video_url, frames_zip_url, avatar_id: the avatar. One is needed, but for the engine `pattern`.
        engine, fps, width, height: as in `POST /session/start`.
        sample_rate: of the audio on its way to the avatar, 8000 … 48000 Hz.
        conn_options: how often a failed call is made again.

    Raises:
        ValueError: there is no address or no key.
    """

    def __init__(
        self,
        *,
        orchestrator_url: str | None = None,
        api_key: str | None = None,
        idle_video_url: str | None = None,
        frames_zip_url: str | None = None,
        avatar_id: str | None = None,
        engine: str | None = None,
        fps: int | None = None,
        width: int | None = None,
        height: int | None = None,
        sample_rate: int = SAMPLE_RATE,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> None:
        super().__init__()
        self._orchestrator = OrchestratorClient(
            _given(orchestrator_url, "orchestrator_url", "MUSETALK_URL"),
            _given(api_key, "api_key", "MUSETALK_API_KEY"),
            conn_options,
        )
        wanted = {
            "idle_video_url": idle_video_url,
            "frames_zip_url": frames_zip_url,
            "avatar_id": avatar_id,
            "engine": engine,
            "fps": fps,
            "width": width,
            "height": height,
        }
        self._wanted = {name: value for name, value in wanted.items() if value is not None}
        self._sample_rate = sample_rate
        self._started: dict[str, Any] | None = None
        self._output: AvatarOutput | None = None

    @property
    def avatar_identity(self) -> str:
        """Identity of the avatar in the room. Known once it has started: RuntimeError before."""
        return str(self._known["avatar_identity"])

    @property
    def provider(self) -> str:
        return "musetalk"

    @property
    def session_id(self) -> str:
        """The orchestrator's name for the session. Known once it has started: RuntimeError before."""
        return str(self._known["session_id"])

    async def start(self, agent_session: AgentSession[Any], room: rtc.Room) -> None:
        """Brings the avatar into the room and sends the agent's speech to it. Call it before `AgentSession.start`.

        The avatar is in the room, with both tracks, when this returns. Raises `MuseTalkError`, and RuntimeError when neither a job
        nor a connected room says who the agent is.
        """
        name, speaker = _whereabouts(room)
        order = {"room": name, "speaker": speaker, "audio_source": "datastream", **self._wanted}
        self._started = await self._orchestrator.start(order)
        log.info("avatar started", extra={"session_id": self.session_id, "room": name})
        await super().start(agent_session, room)
        self._output = AvatarOutput(room, destination_identity=self.avatar_identity, sample_rate=self._sample_rate)
        agent_session.output.replace_audio_tail(self._output)

    async def act(self, name: str, *, loop: bool = False) -> None:
        """Plays a clip of the avatar (`wave` …) once, or with `loop` until something else is asked for; `idle` ends it.

        The mouth speaks over it. A tool of a language model may call it. Raises `MuseTalkError`, as for an unknown name.
        """
        await self._orchestrator.act(self.session_id, name, loop=loop)

    async def show(self, avatar_id: str) -> None:
        """Shows another avatar of the library, while the agent speaks. Raises `MuseTalkError`; the old one then stays."""
        await self._orchestrator.show(self.session_id, avatar_id)

    async def aclose(self) -> None:
        """Ends the avatar's session. Idempotent; a job that shuts down calls it by itself."""
        output, self._output = self._output, None
        if output is not None:
            await output.aclose()
            try:
                await self._orchestrator.stop(self.session_id)
            except MuseTalkError as error:  # it ends by itself, since its speaker is gone
                log.warning("the avatar was not stopped", extra={"session_id": self.session_id, "error": str(error)})
        await super().aclose()

    @property
    def _known(self) -> dict[str, Any]:
        if self._started is None:
            raise RuntimeError("The avatar has not started: await AvatarSession.start(…) first.")
        return self._started


def _given(value: str | None, name: str, variable: str) -> str:
    found = value or os.environ.get(variable)
    if not found:
        raise ValueError(f"{name} is missing: pass it, or set {variable}.")
    return found


def _whereabouts(room: rtc.Room) -> tuple[str, str]:
    """The room's name and the agent's identity in it; a job knows them before the room is connected."""
    job = get_job_context(required=False)
    if job is not None:
        return job.job.room.name, job.local_participant_identity
    if not room.isconnected():
        raise RuntimeError(
            "Connect the room before the avatar starts: outside a job it cannot be known who the agent is."
        )
    return room.name, room.local_participant.identity
