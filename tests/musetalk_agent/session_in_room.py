"""A session of the agent in a real room, whose speech comes through the room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource
from musetalk_agent.session.session import Session
from musetalk_tools.livekit_server import LiveKitAccess
from tests.viewer import join_token


@asynccontextmanager
async def session_in_room(
    access: LiveKitAccess,
    tmp_path: Path,
    *,
    room: str,
    identity: str,
    livekit_agent: str | None = None,
    microphone_of: str | None = None,
) -> AsyncIterator[Session]:
    """A session as the agent makes it, that says an agent of livekit-agents, or a participant."""
    factory = Factory(AgentSettings(agent_api_key="k", engine="pattern", cache_dir=tmp_path))  # type: ignore[arg-type]  # a key as the environment has it
    await factory.start()
    try:
        request = AgentStartRequest(
            session_id="s1",
            room=room,
            livekit_url=access.url,
            livekit_token=join_token(access, room, identity, "agent", publish=True),
            avatar=AvatarSource(),
            livekit_agent=livekit_agent,
            microphone_of=microphone_of,
        )
        session = await factory.session(request)
        await session.start()
        try:
            yield session
        finally:
            await session.stop()
    finally:
        await factory.aclose()
