"""Chooses the agent that takes a session, and keeps each agent's last health report."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from musetalk_agent.protocol.http import AgentHealth
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import HEALTH_TIMEOUT_S, AgentClient, AgentFailed, AgentLease, unavailable

HEALTH_TTL_S = 1.0
LOST_S = 5.0
"""An agent that lost a session is asked last for this long: it may be dying, or take long to say that it is well."""
PATIENT_TIMEOUT_S = 6.0
"""Where no agent is ready, those that were too slow to say so are given this long before a session is refused."""
RETRY_AFTER_S = 5
"""A session ends by a person's decision, so a full fleet is asked again at a person's pace."""
_AVATARS_REMEMBERED = 1024
_BORROWED = ""
"""In place of a session's id."""


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


def limited_by(healths: Iterable[AgentHealth | None]) -> str:
    """For people: `, limited by memory, processor`; nothing for agents that do not say."""
    limits = {health.capacity.limited_by for health in healths if health is not None}
    named = sorted(limit.value for limit in limits if limit is not None)
    return f", limited by {', '.join(named)}" if named else ""


class AgentPool(Protocol):
    """Gives each session the agent process that everything of it must reach."""

    async def acquire(
        self, session_id: str, *, avatar_id: str | None = None, avoid: frozenset[str] = frozenset()
    ) -> AgentLease:
        """An agent with a free place, none that `avoid` names (a lease's `name`, also of a lease that was given back).

        One that holds `avatar_id` is preferred. One that lost a session a moment ago is taken only when nothing else is there.

        Raises ProblemError `at_capacity` when all are full, `agent_unavailable` when none can be used.
        """
        ...

    def borrow(self) -> AbstractAsyncContextManager[AgentLease]:
        """Borrows any agent for a call that belongs to no session. Raises as `acquire` does."""
        ...

    def adopt(self, session_id: str, name: str) -> AgentLease | None:
        """The place that a session has had since before this process; None when there is no such agent any more."""
        ...

    def release(self, session_id: str) -> None:
        """The session is over. Without effect for one that holds nothing."""
        ...

    def detach(self, session_id: str) -> None:
        """The place is no longer ours. It is not ended, for the agent may still have to be reached."""
        ...

    def lost(self, lease: AgentLease) -> None:
        """This agent lost a session: what it last said of itself no longer counts."""
        ...

    async def status(self) -> list[AgentStatus]:
        """Every agent, asked at most a second ago."""
        ...

    def leases(self) -> list[AgentLease]:
        """Leases of every agent."""
        ...

    def remember_avatar(self, avatar_id: str, lease: AgentLease) -> None:
        """This agent holds the avatar."""
        ...

    async def aclose(self) -> None:
        """Waits for what was released to be given back; a matter of seconds."""
        ...


@dataclass
class _Known:
    """What an agent last said of itself: None where it did not answer.

    `stale`: something has changed since it was asked. `slow`: it did not answer in time, and was not given longer yet; `patient`:
    how many callers give it longer now.
    """

    asked_at: float = float("-inf")
    health: AgentHealth | None = None
    stale: bool = True
    slow: bool = False
    patient: int = 0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class StaticAgentPool:
    """A fixed list of agents; the least loaded takes the session."""

    def __init__(self, urls: Sequence[str], api_key: str, client: AgentClient) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._agents = {url: AgentLease(url, headers) for url in urls}
        self._client = client
        self._held: dict[str, str] = {}
        self._known = {url: _Known() for url in urls}
        self._avatars: OrderedDict[str, str] = OrderedDict()
        self._lost: dict[str, float] = {}

    async def acquire(
        self, session_id: str, *, avatar_id: str | None = None, avoid: frozenset[str] = frozenset()
    ) -> AgentLease:
        lost = [url for url, at in self._lost.items() if time.monotonic() - at < LOST_S]
        healths: dict[str, AgentHealth | None] = {}
        for urls in ([url for url in self._agents if url not in lost], lost):
            healths |= await self._ask_all(urls)
            if self._take(session_id, healths, avatar_id, avoid):
                return self._agents[self._held[session_id]]
        if not self._usable(healths):
            healths |= await self._ask_all([url for url, known in self._known.items() if known.slow], patient=True)
            if self._take(session_id, healths, avatar_id, avoid):
                return self._agents[self._held[session_id]]
        usable = self._usable(healths)
        if not usable:
            raise unavailable("none is ready")
        raise ProblemError(
            ErrorCode.AT_CAPACITY,
            f"All {len(usable)} agents are full{limited_by(agent.health for agent in usable)}: try again later, or stop a session.",
            retry_after_s=RETRY_AFTER_S,
        )

    def _take(
        self,
        session_id: str,
        healths: Mapping[str, AgentHealth | None],
        avatar_id: str | None,
        avoid: frozenset[str],
    ) -> bool:
        """Gives the session the best free place of these agents; False where none is free. Nothing is awaited, so that no two
        callers get the last place."""
        free = [agent for agent in self._usable(healths) if agent.load < 1.0 and agent.base_url not in avoid]
        if free:
            home = self._avatars.get(avatar_id or "")
            self._held[session_id] = min(free, key=lambda agent: (agent.base_url != home, agent.load)).base_url
        return bool(free)

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[AgentLease]:
        lease = await self.acquire(_BORROWED)
        del self._held[_BORROWED]  # it takes no session's place
        yield lease

    def adopt(self, session_id: str, name: str) -> AgentLease | None:
        lease = self._agents.get(name)
        if lease is not None:
            self._held[session_id] = name
        return lease

    def release(self, session_id: str) -> None:
        url = self._held.pop(session_id, None)
        if url is not None:
            self._known[url].stale = True  # what it reported a moment ago counts the session that is gone

    def detach(self, session_id: str) -> None:
        self.release(session_id)

    def lost(self, lease: AgentLease) -> None:
        self._lost[lease.base_url] = time.monotonic()
        known = self._known.get(lease.base_url)
        if known is not None:
            known.stale = True

    async def status(self) -> list[AgentStatus]:
        return self._statuses(await self._ask_all(self._agents))

    def _statuses(self, healths: Mapping[str, AgentHealth | None]) -> list[AgentStatus]:
        held = Counter(self._held.values())
        return [AgentStatus(url, health, held[url]) for url, health in healths.items()]

    def _usable(self, healths: Mapping[str, AgentHealth | None]) -> list[AgentStatus]:
        return [agent for agent in self._statuses(healths) if agent.usable]

    def leases(self) -> list[AgentLease]:
        return list(self._agents.values())

    def remember_avatar(self, avatar_id: str, lease: AgentLease) -> None:
        self._avatars[avatar_id] = lease.base_url
        self._avatars.move_to_end(avatar_id)
        while len(self._avatars) > _AVATARS_REMEMBERED:
            self._avatars.popitem(last=False)

    async def aclose(self) -> None:
        pass

    async def _ask_all(self, urls: Iterable[str], *, patient: bool = False) -> dict[str, AgentHealth | None]:
        """The agents' health by their addresses; None for those that do not answer in time."""
        asked = list(urls)
        return dict(zip(asked, await asyncio.gather(*(self._ask(url, patient) for url in asked)), strict=True))

    async def _ask(self, url: str, patient: bool) -> AgentHealth | None:
        """The agent's health, at most a second old, and no older than the last session that left it.

        `patient`: one that was too slow is asked again and given longer. Other callers do not wait for that answer.
        """
        known = self._known[url]
        if known.patient and not patient:
            return known.health
        known.patient += patient
        try:
            async with known.asking:
                old = known.stale or time.monotonic() - known.asked_at >= HEALTH_TTL_S
                if old or (patient and known.slow):
                    await self._renew(url, patient)
                return known.health
        finally:
            known.patient -= patient

    async def _renew(self, url: str, patient: bool) -> None:
        known = self._known[url]
        known.stale = False  # before the question: what becomes stale meanwhile is asked again
        try:
            known.health = await self._client.health(
                self._agents[url], PATIENT_TIMEOUT_S if patient else HEALTH_TIMEOUT_S
            )
            known.slow = False
        except ProblemError as error:
            known.health = None
            known.slow = isinstance(error, AgentFailed) and not patient
        except asyncio.CancelledError:
            known.stale = True  # nothing was learnt
            raise
        known.asked_at = time.monotonic()
