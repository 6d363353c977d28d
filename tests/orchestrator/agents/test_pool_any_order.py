"""Which agent takes a session, for any fleet: one with room, the home of the avatar first, the least loaded next, the lost last."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.http import AgentHealth, Capacity
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.agents.pool import StaticAgentPool

URLS = [f"http://{name}" for name in "abcd"]


@dataclass
class Agent:
    """What it says of itself; `answers` False: nothing."""

    places: int
    status: str = "ok"
    draining: bool = False
    answers: bool = True
    strangers: int = 0
    """Sessions of another orchestrator."""

    @property
    def well(self) -> bool:
        return self.answers and self.status == "ok" and not self.draining


_agents = st.lists(
    st.builds(
        Agent,
        places=st.integers(0, 4),
        status=st.sampled_from(["ok", "ok", "ok", "warming"]),
        draining=st.sampled_from([False, False, True]),
        answers=st.sampled_from([True, True, True, False]),
        strangers=st.integers(0, 2),
    ),
    min_size=1,
    max_size=4,
)
_acts = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 3), st.sets(st.integers(0, 3), max_size=2)),
        st.tuples(st.just("stop"), st.integers(0, 20), st.just(set[int]())),
        st.tuples(st.just("lost"), st.integers(0, 3), st.just(set[int]())),
        st.tuples(st.just("home"), st.integers(0, 3), st.just(set[int]())),
    ),
    max_size=25,
)


class Client:
    """Answers for the fleet from its state; every start that was granted is a session there."""

    def __init__(self, fleet: dict[str, Agent]) -> None:
        self.fleet = fleet
        self.sessions = dict.fromkeys(fleet, 0)

    async def health(self, lease: AgentLease, timeout_s: float) -> AgentHealth:
        await asyncio.sleep(0)
        agent = self.fleet[lease.base_url]
        if not agent.answers:
            raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, "nothing")
        taken = agent.strangers + self.sessions[lease.base_url]
        capacity = Capacity(sessions=taken, sessions_max=agent.places)
        return AgentHealth(
            status=agent.status, version="1", engine="warp", capacity=capacity, draining=agent.draining, instance="i"
        )


@settings(max_examples=300, deadline=None)
@given(agents=_agents, acts=_acts)
def test_every_session_goes_where_it_should(agents: list[Agent], acts: list[tuple[str, int, set[int]]]) -> None:
    async def played() -> None:
        fleet = dict(zip(URLS, agents, strict=False))
        client = Client(fleet)
        pool = StaticAgentPool(list(fleet), "key", cast(AgentClient, client))
        held, homes, lost = dict[str, str](), dict[str, str](), set[str]()
        for number, (act, which, avoided) in enumerate(acts):
            url = URLS[which % len(fleet)]
            if act == "start":
                avatar, avoid = f"sha256:{which}", frozenset(URLS[n] for n in avoided)

                def load(each: str) -> float:
                    agent = fleet[each]
                    taken = max(agent.strangers + client.sessions[each], sum(at == each for at in held.values()))
                    return taken / agent.places if agent.places else 1.0

                free = [u for u in fleet if fleet[u].well and load(u) < 1 and u not in avoid]
                try:
                    lease = await pool.acquire(f"s{number}", avatar_id=avatar, avoid=avoid)
                except ProblemError as problem:
                    well = any(agent.well for agent in fleet.values())
                    assert not free and problem.code is (ErrorCode.AT_CAPACITY if well else ErrorCode.AGENT_UNAVAILABLE)
                    continue
                candidates = [u for u in free if u not in lost] or free
                assert lease.base_url in candidates
                if homes.get(avatar) in candidates:
                    assert lease.base_url == homes[avatar]
                else:
                    assert load(lease.base_url) == min(map(load, candidates))
                held[f"s{number}"] = lease.base_url
                client.sessions[lease.base_url] += 1
                pool._known[lease.base_url].stale = True  # as after a second
            elif act == "stop" and held:
                session = list(held)[which % len(held)]
                client.sessions[held.pop(session)] -= 1
                pool.release(session)
                pool.release(session)
            elif act == "lost":
                pool.lost(pool._agents[url])
                lost.add(url)
            elif act == "home":
                pool.remember_avatar(f"sha256:{which}", pool._agents[url])
                homes[f"sha256:{which}"] = url
        assert {status.base_url: status.leases for status in await pool.status()} == {
            url: sum(at == url for at in held.values()) for url in fleet
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.agents.pool.LOST_S", 3600.0)
        patch.setattr("orchestrator.agents.pool.HEALTH_TTL_S", 3600.0)
        asyncio.run(played())


@settings(max_examples=100, deadline=None)
@given(places=st.lists(st.integers(0, 4), min_size=1, max_size=4), wanted=st.integers(1, 20))
def test_starts_at_the_same_moment_take_no_place_twice(places: list[int], wanted: int) -> None:
    async def played() -> None:
        fleet = dict(zip(URLS, map(Agent, places), strict=False))
        pool = StaticAgentPool(list(fleet), "key", cast(AgentClient, Client(fleet)))
        calls = [pool.acquire(f"s{n}") for n in range(wanted)]
        got = [each for each in await asyncio.gather(*calls, return_exceptions=True) if isinstance(each, AgentLease)]
        assert len(got) == min(wanted, sum(places))
        assert all(sum(lease.base_url == url for lease in got) <= agent.places for url, agent in fleet.items())

    asyncio.run(played())
