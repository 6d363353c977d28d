"""An orchestrator with several fake agents, each of which can die."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.fakes.agent_server import FakeAgent
from tests.fakes.agent_session import FakeSession
from tests.fakes.serving import plain_config, serving
from tests.fakes.stage import Stage, stage


@dataclass
class Fleet:
    """The orchestrator, and its agents by address."""

    stage: Stage
    agents: dict[str, FakeAgent]
    lives: dict[str, AsyncExitStack]

    def of(self, session_id: str) -> FakeAgent:
        """The agent that has the session now."""
        lease = self.stage.app.state.context.sessions.registry.get(session_id).lease
        return self.agents[lease.base_url]

    def others(self, agent: FakeAgent) -> list[FakeAgent]:
        return [other for other in self.agents.values() if other is not agent]

    async def kill(self, agent: FakeAgent) -> None:
        """Ends its process, which has played until now: connections break, new ones are refused. What it did stays readable."""
        for session in agent.sessions.values():
            if session.sockets and agent.pace:
                agent.play_on(session)
        (url,) = [url for url, one in self.agents.items() if one is agent]
        await self.lives[url].aclose()

    def heard(self, session_id: str, number: int) -> list[tuple[int, bytes]]:
        """What each agent played of a segment, in the order of their beginnings: first sample, PCM."""
        sessions: list[FakeSession] = [a.sessions[session_id] for a in self.agents.values() if session_id in a.sessions]
        parts = [s.segments[number] for s in sessions if number in s.segments]
        return sorted(((part.base, part.heard_pcm) for part in parts), key=lambda part: (part[0], len(part[1])))


@asynccontextmanager
async def fleet(count: int = 2, *, pace: float = 2.0, **overrides: Any) -> AsyncIterator[Fleet]:
    """Starts everything and ends everything."""
    async with AsyncExitStack() as stack:
        agents: dict[str, FakeAgent] = {}
        lives: dict[str, AsyncExitStack] = {}
        for _ in range(count):
            agent, life = FakeAgent(), AsyncExitStack()
            agent.pace = pace
            stack.push_async_callback(life.aclose)
            url = await life.enter_async_context(serving(plain_config(agent.app)))
            agents[url], lives[url] = agent, life
        running = await stack.enter_async_context(stage(agent_url=list(agents), **overrides))
        yield Fleet(running, agents, lives)
