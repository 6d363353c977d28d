"""What every session is made with: the services it uses, and the background tasks that may outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.agents.agent_client import AgentClient
from orchestrator.agents.pool import AgentPool
from orchestrator.events import EventBus
from orchestrator.ingress import Ingresses
from orchestrator.livekit_rooms import Rooms, TokenMinter
from orchestrator.metrics import Metrics
from orchestrator.session.journal import SessionJournal
from orchestrator.session.model import ManagedSession


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


class OwnVoices(Protocol):
    """The orchestrator's own voice in sessions."""

    def reserve(self, session: ManagedSession) -> None:
        """Before the session takes anything else. Raises ProblemError `at_capacity` when it is to speak and has no line left."""
        ...

    def begin(self, session: ManagedSession) -> None:
        """The session's audio path is there. Raises ProblemError `at_capacity`."""
        ...

    def stand_in(self, session: ManagedSession) -> AbstractAsyncContextManager[None]:
        """Entered when an agent is lost, left when the next one has joined. It may render the speech (`live.attach_renderer`);
        then it gives it back with `live.rewind` before it ends.
        """
        ...

    def end(self, session: ManagedSession) -> None:
        """The session is over. Without effect for one that did not begin."""
        ...

    def view(self, session: ManagedSession) -> dict[str, Any] | None:
        """The voice's part of `/debug/audio`; None while it is not in the room."""
        ...


class NoVoices:
    """No standby voice: silence until there is an agent again."""

    def reserve(self, session: ManagedSession) -> None:
        """Nothing."""

    def begin(self, session: ManagedSession) -> None:
        """Nothing."""

    def stand_in(self, session: ManagedSession) -> AbstractAsyncContextManager[None]:
        """No stand-in."""
        return nullcontext()

    def end(self, session: ManagedSession) -> None:
        """Nothing."""

    def view(self, session: ManagedSession) -> dict[str, Any] | None:
        """Not there."""
        return None


@dataclass(frozen=True)
class SessionDeps:
    """What sessions are made with."""

    pool: AgentPool
    agents: AgentClient
    rooms: Rooms
    minter: TokenMinter
    metrics: Metrics
    events: EventBus
    ledger: SessionJournal
    ingresses: Ingresses | None = None
    voices: OwnVoices = field(default_factory=NoVoices)
    background: BackgroundTasks = field(default_factory=BackgroundTasks)
