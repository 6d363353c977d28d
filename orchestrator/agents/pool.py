"""Which agent takes a session."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from musetalk_agent.protocol.http import AgentHealth
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.client import AgentClient, AgentLease, unavailable

HEALTH_TTL_S = 1.0
LOST_S = 5.0
"""An agent that lost a session is asked last for this long: it may be dying, or take long to say that it is well."""
RETRY_AFTER_S = 5
"""A session ends by a person's decision, so a full fleet is asked again at a person's pace."""
_AVATARS_REMEMBERED = 1024
_ERRAND = "errand"
_NEVER: tuple[float, AgentHealth | None] = (float("-inf"), None)


@dataclass(frozen=True)
class AgentStatus:
    """One agent as the pool sees it. `health` is None when it did not answer."""

    base_url: str
    health: AgentHealth | None
    leases: int

    @property
    def usable(self) -> bool:
        """Ready, and not draining."""
        return self.health is not None and self.health.status == "ok" and not self.health.draining

    @property
    def load(self) -> float:
        """Share of its places that are taken; our own leases count even when its `/health` is a second old."""
        if self.health is None or self.health.capacity.sessions_max <= 0:
            return 1.0
        return max(self.health.capacity.sessions, self.leases) / self.health.capacity.sessions_max


class AgentPool(Protocol):
    """Gives each session the agent process that everything of it must reach."""

    async def acquire(
        self, session_id: str, *, avatar_id: str | None = None, avoid: frozenset[str] = frozenset()
    ) -> AgentLease:
        """An agent with a free place, none whose lease's `name` is in `avoid`; one that holds `avatar_id` is preferred. One that
        lost a session a moment ago is taken only when nothing else is there.

        Raises ProblemError `at_capacity` when all are full, `agent_unavailable` when none can be used.
        """
        ...

    def errand(self) -> AbstractAsyncContextManager[AgentLease]:
        """A way to some agent, for as long as it is entered, for what is no session. Raises as `acquire` does."""
        ...

    def adopt(self, session_id: str, name: str) -> AgentLease | None:
        """The place that a session has had since before this process; None when there is no such agent any more."""
        ...

    def release(self, session_id: str) -> None:
        """The session is over. Without effect for one that holds nothing."""
        ...

    def forget(self, session_id: str) -> None:
        """The place is no longer ours, but somebody may still have to reach the agent: it is not taken away."""
        ...

    def lost(self, lease: AgentLease) -> None:
        """This agent lost a session: what it last said of itself no longer counts."""
        ...

    async def status(self) -> list[AgentStatus]:
        """Every agent, asked at most a second ago."""
        ...

    def leases(self) -> list[AgentLease]:
        """A way to every agent."""
        ...

    def remember_avatar(self, avatar_id: str, lease: AgentLease) -> None:
        """This agent holds the avatar."""
        ...

    async def aclose(self) -> None:
        """Waits for what was released to be given back; a matter of seconds."""
        ...


class StaticAgentPool:
    """A fixed list of agents; the least loaded takes the session."""

    def __init__(self, urls: Sequence[str], api_key: str, client: AgentClient) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._agents = {url: AgentLease(url, headers) for url in urls}
        self._client = client
        self._held: dict[str, str] = {}
        self._health: dict[str, tuple[float, AgentHealth | None]] = {}
        self._avatars: OrderedDict[str, str] = OrderedDict()
        self._lost: dict[str, float] = {}
        self._asking = {url: asyncio.Lock() for url in urls}

    async def acquire(
        self, session_id: str, *, avatar_id: str | None = None, avoid: frozenset[str] = frozenset()
    ) -> AgentLease:
        lost = [url for url, at in self._lost.items() if time.monotonic() - at < LOST_S]
        usable: list[AgentStatus] = []
        free: list[AgentStatus] = []
        for urls in ([url for url in self._agents if url not in lost], lost):
            usable += [agent for agent in await self._status(urls) if agent.usable]
            free = [agent for agent in usable if agent.load < 1.0 and agent.base_url not in avoid]
            if free:
                break
        if not usable:
            raise unavailable("none is ready")
        if not free:
            raise ProblemError(
                ErrorCode.AT_CAPACITY,
                f"All {len(usable)} agents are full: try again later, or stop a session.",
                retry_after_s=RETRY_AFTER_S,
            )
        home = self._avatars.get(avatar_id or "")
        chosen = min(free, key=lambda agent: (agent.base_url != home, agent.load))
        self._held[session_id] = chosen.base_url
        return self._agents[chosen.base_url]

    @asynccontextmanager
    async def errand(self) -> AsyncIterator[AgentLease]:
        lease = await self.acquire(_ERRAND)
        self.release(_ERRAND)  # it takes no session's place
        yield lease

    def adopt(self, session_id: str, name: str) -> AgentLease | None:
        lease = self._agents.get(name)
        if lease is not None:
            self._held[session_id] = name
        return lease

    def release(self, session_id: str) -> None:
        url = self._held.pop(session_id, None)
        if url is not None:
            self._health.pop(url, None)  # what it told a moment ago counts the session that is gone

    def forget(self, session_id: str) -> None:
        self.release(session_id)

    def lost(self, lease: AgentLease) -> None:
        self._lost[lease.base_url] = time.monotonic()
        self._health.pop(lease.base_url, None)

    async def status(self) -> list[AgentStatus]:
        return await self._status(self._agents)

    async def _status(self, urls: Iterable[str]) -> list[AgentStatus]:
        asked = list(urls)
        await asyncio.gather(*(self._ask(url) for url in asked))
        held = list(self._held.values())
        return [AgentStatus(url, self._health.get(url, _NEVER)[1], held.count(url)) for url in asked]

    def leases(self) -> list[AgentLease]:
        return list(self._agents.values())

    def remember_avatar(self, avatar_id: str, lease: AgentLease) -> None:
        self._avatars[avatar_id] = lease.base_url
        self._avatars.move_to_end(avatar_id)
        while len(self._avatars) > _AVATARS_REMEMBERED:
            self._avatars.popitem(last=False)

    async def aclose(self) -> None:
        pass

    async def _ask(self, url: str) -> None:
        async with self._asking[url]:
            asked_at, health = self._health.get(url, _NEVER)
            if time.monotonic() - asked_at < HEALTH_TTL_S:
                return
            try:
                health = await self._client.health(self._agents[url])
            except ProblemError:
                health = None
            self._health[url] = (time.monotonic(), health)
