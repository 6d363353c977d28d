from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import pytest

from musetalk_agent.protocol.http import AgentHealth, Capacity
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.agents.pool import StaticAgentPool
from tests.fakes.agent_server import AGENT_KEY, FakeAgent
from tests.fakes.serving import plain_config, serving

DEAD = "http://127.0.0.1:9"  # the discard port: nobody listens


@asynccontextmanager
async def fleet(count: int, *more: str) -> AsyncIterator[tuple[StaticAgentPool, list[FakeAgent], list[str]]]:
    agents = [FakeAgent() for _ in range(count)]
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(plain_config(agent.app))) for agent in agents]
        client = AgentClient()
        stack.push_async_callback(client.aclose)
        yield StaticAgentPool([*urls, *more], AGENT_KEY, client), agents, urls


async def test_the_least_loaded_agent_takes_the_session() -> None:
    async with fleet(2) as (pool, agents, urls):
        agents[0].sessions_max, agents[1].sessions_max = 2, 4
        taken = [(await pool.acquire(f"s{n}")).base_url for n in range(6)]
        assert (taken.count(urls[0]), taken.count(urls[1])) == (2, 4)
        with pytest.raises(ProblemError) as caught:
            await pool.acquire("one too many")
        assert (caught.value.code, caught.value.retry_after_s) == (ErrorCode.AT_CAPACITY, 5)
        pool.release("s0")
        assert (await pool.acquire("again")).base_url == taken[0]


async def test_draining_unready_and_dead_agents_are_left_out() -> None:
    async with fleet(3, DEAD) as (pool, agents, urls):
        agents[0].draining = True
        agents[1].status = "warming"
        for n in range(3):
            assert (await pool.acquire(f"s{n}")).base_url == urls[2]
        assert [status.usable for status in await pool.status()] == [False, False, True, False]


async def test_no_agent_at_all_is_not_the_same_as_a_full_one() -> None:
    async with fleet(0, DEAD) as (pool, _, _):
        with pytest.raises(ProblemError) as caught:
            await pool.acquire("s")
        assert caught.value.code is ErrorCode.AGENT_UNAVAILABLE


async def test_an_agent_that_holds_the_avatar_is_preferred_while_it_has_room() -> None:
    async with fleet(2) as (pool, agents, urls):
        agents[1].sessions_max = 1
        lease = next(lease for lease in pool.leases() if lease.base_url == urls[1])
        pool.remember_avatar("sha256:a", lease)
        assert (await pool.acquire("s0", avatar_id="sha256:a")).base_url == urls[1]
        assert (await pool.acquire("s1", avatar_id="sha256:a")).base_url == urls[0]


async def test_avoided_agents_are_not_asked_twice() -> None:
    async with fleet(2) as (pool, _, urls):
        assert (await pool.acquire("s", avoid=frozenset({urls[0]}))).base_url == urls[1]


async def test_an_agent_that_lost_a_session_is_the_last_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(2) as (pool, agents, urls):
        for n in range(2):
            await pool.acquire(f"s{n}")
        lost, other = pool.leases()
        pool.lost(lost)
        agents[0].hung = True  # whoever is lost may not answer at all: nobody waits for it
        assert [(await pool.acquire(f"t{n}")).base_url for n in range(3)] == [other.base_url] * 3
        agents[0].hung = False
        agents[1].sessions_max = 4
        pool.release("t0")
        await pool.acquire("t0")
        assert (await pool.acquire("u")).base_url == lost.base_url, "nothing else is there"
        monkeypatch.setattr("orchestrator.agents.pool.LOST_S", 0.0)
        pool.release("u")
        assert (await pool.acquire("v")).base_url == urls[0]


class Clockwork:
    """Agents whose answers come when the test says so."""

    def __init__(self, *urls: str) -> None:
        self.answer = {url: asyncio.Event() for url in urls}
        self.sessions = dict.fromkeys(urls, 0)
        self.asked: Counter[str] = Counter()

    async def health(self, lease: AgentLease, timeout_s: float) -> AgentHealth:
        sessions = self.sessions[lease.base_url]
        self.asked[lease.base_url] += 1
        await self.answer[lease.base_url].wait()
        capacity = Capacity(sessions=sessions, sessions_max=4)
        return AgentHealth(status="ok", version="0", engine="warp", capacity=capacity)


async def test_what_ends_while_agents_are_asked_makes_none_of_them_look_gone() -> None:
    clockwork = Clockwork("http://a", "http://b")
    pool = StaticAgentPool(["http://a", "http://b"], "key", cast("AgentClient", clockwork))
    clockwork.answer["http://a"].set()
    pool.adopt("s", "http://a")
    asking = asyncio.create_task(pool.status())
    while clockwork.asked["http://b"] == 0:  # noqa: ASYNC110 - some iterations of the loop
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    pool.release("s")  # `a` has answered, `b` has not yet
    clockwork.answer["http://b"].set()
    assert [agent.usable for agent in await asking] == [True, True]
    await pool.status()
    assert clockwork.asked == {"http://a": 2, "http://b": 1}, "what was said before the end no longer counts"


async def test_an_end_while_its_own_agent_is_asked_makes_the_answer_stale() -> None:
    clockwork = Clockwork("http://a")
    pool = StaticAgentPool(["http://a"], "key", cast("AgentClient", clockwork))
    clockwork.sessions["http://a"] = 4
    for n in range(4):
        pool.adopt(f"s{n}", "http://a")
    asking = asyncio.create_task(pool.status())
    while clockwork.asked["http://a"] == 0:  # noqa: ASYNC110 - some iterations of the loop
        await asyncio.sleep(0)
    clockwork.sessions["http://a"] = 3
    pool.release("s0")
    clockwork.answer["http://a"].set()
    assert (await asking)[0].usable
    assert (await pool.acquire("next")).base_url == "http://a"


async def test_looks_starts_and_uploads_beside_uploads_all_find_the_agent() -> None:
    async with fleet(1) as (pool, _, urls):

        async def upload() -> None:
            for _ in range(20):
                async with pool.borrow() as lease:
                    assert lease.base_url == urls[0]

        async def start(n: int) -> None:
            for m in range(20):
                await pool.acquire(f"s{n}-{m}")
                pool.release(f"s{n}-{m}")

        async def look() -> None:
            for _ in range(20):
                assert (await pool.status())[0].usable

        await asyncio.gather(*(upload() for _ in range(10)), *(start(n) for n in range(3)), look(), look())


async def test_the_key_is_not_shown() -> None:
    async with fleet(1) as (pool, _, _):
        assert AGENT_KEY not in repr(pool.leases())
