"""What every session is made with: the services it uses, and the background tasks that may outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field

from orchestrator.agents.agent_client import AgentClient
from orchestrator.agents.pool import AgentPool
from orchestrator.avatars.avatar_library import Avatars
from orchestrator.conversation.conversations import Conversations
from orchestrator.events import EventBus
from orchestrator.livekit_rooms import Ingresses, Rooms, TokenMinter
from orchestrator.metrics import Metrics
from orchestrator.public_tokens import PublicTokens
from orchestrator.recording.films import Films
from orchestrator.session.journal import SessionJournal
from orchestrator.session.standby_voice import StandbyVoices


class BackgroundTasks:
    """Tasks of their own. `aclose` gives some of them a moment."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._awaited: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None], name: str, *, awaited: bool) -> asyncio.Task[None]:
        """Begins work. `awaited`: what it does matters also when the service ends."""
        task = asyncio.create_task(work, name=name)
        for kept in (self._tasks, self._awaited) if awaited else (self._tasks,):
            kept.add(task)
            task.add_done_callback(kept.discard)
        return task

    async def aclose(self, timeout_s: float) -> None:
        """Waits for what matters, `timeout_s` at most; the rest is cancelled."""
        if self._awaited:
            await asyncio.wait(self._awaited, timeout=timeout_s)
        late = list(self._tasks)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


@dataclass(frozen=True)
class SessionDeps:
    """What sessions are made with."""

    pool: AgentPool
    agents: AgentClient
    rooms: Rooms
    minter: TokenMinter
    metrics: Metrics
    events: EventBus
    journal: SessionJournal
    voices: StandbyVoices
    ingresses: Ingresses | None = None
    conversations: Conversations | None = None
    public_tokens: PublicTokens | None = None
    films: Films | None = None
    avatars: Avatars | None = None
    background: BackgroundTasks = field(default_factory=BackgroundTasks)
