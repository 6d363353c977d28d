"""What the pool remembers and for how long, on virtual time: health for a second, a lost agent for five."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from musetalk_agent.protocol.http import AgentHealth, Capacity
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import HEALTH_TIMEOUT_S, AgentClient, AgentFailed, AgentLease
from orchestrator.agents.pool import HEALTH_TTL_S, LOST_S, PATIENT_TIMEOUT_S, StaticAgentPool
from tests.virtual_loop import virtually

A, B = "http://a", "http://b"


class Fleet:
    """Agents of four places that answer after `seconds`, `hanging` ones never; `away` ones are refused after that time."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seconds = 0.0
        self.away: set[str] = set()
        self.hanging: set[str] = set()
        self.taken = {A: 0, B: 0}

    async def health(self, lease: AgentLease, timeout_s: float) -> AgentHealth:
        self.asked.append(lease.base_url)
        seconds = self.seconds if lease.base_url not in self.hanging else float("inf")
        await asyncio.sleep(min(seconds, timeout_s))
        if seconds > timeout_s:
            raise AgentFailed(ErrorCode.AGENT_UNAVAILABLE, "ReadTimeout")
        if lease.base_url in self.away:
            raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, "away")
        capacity = Capacity(sessions=self.taken[lease.base_url], sessions_max=4)
        return AgentHealth(status="ok", version="0", engine="warp", capacity=capacity)


def pool_of(fleet: Fleet, *urls: str) -> StaticAgentPool:
    return StaticAgentPool(urls or [A, B], "key", cast(AgentClient, fleet))


@virtually
async def test_health_is_asked_once_a_second_whoever_looks() -> None:
    fleet = Fleet()
    pool = pool_of(fleet)
    for n in range(10):
        await asyncio.gather(pool.acquire(f"s{n}"), pool.status(), pool.status())
        pool._held.clear()  # a session that was never there makes nothing stale
    assert fleet.asked == [A, B]
    await asyncio.sleep(HEALTH_TTL_S)
    await pool.status()
    assert fleet.asked == [A, B, A, B]


@virtually
async def test_a_session_that_ended_makes_its_agent_be_asked_again_at_once_and_no_other() -> None:
    fleet = Fleet()
    fleet.taken[B] = 1
    pool = pool_of(fleet)
    assert (await pool.acquire("s")).base_url == A
    pool.release("s")
    pool.release("s")
    await pool.status()
    assert fleet.asked == [A, B, A]


@virtually
async def test_one_that_does_not_answer_is_asked_again_after_a_second_and_holds_up_each_look_once() -> None:
    fleet = Fleet()
    fleet.away.add(A)
    fleet.seconds = 2.0
    pool = pool_of(fleet, A)
    looks = [asyncio.create_task(pool.status()) for _ in range(5)]
    begun = asyncio.get_running_loop().time()
    assert [status.usable for each in looks for status in await each] == [False] * 5
    assert asyncio.get_running_loop().time() - begun == 2.0 and fleet.asked == [A]


@virtually
async def test_a_slow_agent_is_given_longer_before_a_session_is_refused() -> None:
    fleet = Fleet()
    fleet.seconds = PATIENT_TIMEOUT_S - 0.5
    pool = pool_of(fleet, A)
    starts = [asyncio.create_task(pool.acquire(f"s{n}")) for n in range(4)]
    begun = asyncio.get_running_loop().time()
    assert [lease.base_url for lease in await asyncio.gather(*starts)] == [A] * 4
    assert asyncio.get_running_loop().time() - begun == HEALTH_TIMEOUT_S + fleet.seconds
    assert fleet.asked == [A, A], "four starts wait for one answer"


@virtually
async def test_while_a_start_waits_for_a_slow_agent_a_look_does_not() -> None:
    fleet, loop = Fleet(), asyncio.get_running_loop()
    fleet.seconds = PATIENT_TIMEOUT_S - 0.5
    pool = pool_of(fleet, A)
    start = asyncio.create_task(pool.acquire("s"))
    await asyncio.sleep(HEALTH_TIMEOUT_S + 2 * HEALTH_TTL_S)
    begun = loop.time()
    assert [status.usable for status in await pool.status()] == [False]
    assert loop.time() == begun
    late = asyncio.create_task(pool.acquire("another"))
    assert (await start).base_url == (await late).base_url == A
    assert fleet.asked == [A, A]
    assert [status.usable for status in await pool.status()] == [True]


@virtually
async def test_a_start_that_is_cancelled_while_it_waits_for_a_slow_agent_hides_nothing() -> None:
    fleet = Fleet()
    fleet.hanging.add(A)
    pool = pool_of(fleet, A)
    start = asyncio.create_task(pool.acquire("s"))
    await asyncio.sleep(HEALTH_TIMEOUT_S + 1)
    start.cancel()
    await asyncio.wait({start})
    fleet.hanging.clear()
    assert [status.usable for status in await pool.status()] == [True]
    assert pool._held == {}


@virtually
async def test_one_that_hangs_is_refused_in_the_end_and_one_that_is_away_at_once() -> None:
    fleet = Fleet()
    pool, loop = pool_of(fleet, A), asyncio.get_running_loop()
    for hanging, away, refused_s in (({A}, set(), HEALTH_TIMEOUT_S + PATIENT_TIMEOUT_S), (set(), {A}, 0.0)):
        fleet.hanging, fleet.away = hanging, away
        await asyncio.sleep(HEALTH_TTL_S)
        begun = loop.time()
        with pytest.raises(ProblemError, match="none is ready"):
            await pool.acquire("s")
        assert loop.time() - begun == refused_s


@virtually
async def test_while_another_is_well_a_slow_agent_is_not_waited_for_any_longer() -> None:
    fleet = Fleet()
    pool = pool_of(fleet)
    fleet.hanging.add(A)
    begun = asyncio.get_running_loop().time()
    taken = [await pool.acquire(f"s{n}") for n in range(4)]
    assert {lease.base_url for lease in taken} == {B}
    with pytest.raises(ProblemError) as caught:
        await pool.acquire("one too many")
    assert caught.value.code is ErrorCode.AT_CAPACITY
    assert asyncio.get_running_loop().time() - begun == HEALTH_TIMEOUT_S


@virtually
async def test_a_lost_agent_is_the_last_for_five_seconds_and_then_as_good_as_any() -> None:
    fleet = Fleet()
    fleet.taken[B] = 3
    pool = pool_of(fleet)
    for n in range(3):
        pool.adopt(f"there {n}", B)
    pool.lost(pool.leases()[0])
    assert (await pool.acquire("one")).base_url == B
    assert fleet.asked == [B], "nobody waits for the one that may be dying"
    assert (await pool.acquire("two")).base_url == A, "nothing else has a place"
    pool.release("one")
    pool.release("two")
    await asyncio.sleep(LOST_S)
    assert (await pool.acquire("three")).base_url == A, "it is the emptier one"


@virtually
async def test_a_look_that_is_cancelled_teaches_nothing_and_hides_nothing() -> None:
    fleet = Fleet()
    pool = pool_of(fleet, A)
    await pool.acquire("before")
    pool.release("before")  # what was said a moment ago no longer counts
    fleet.seconds = 0.5
    looking = asyncio.create_task(pool.acquire("s"))
    await asyncio.sleep(0.2)
    looking.cancel()
    await asyncio.wait({looking})
    fleet.seconds = 0.0
    assert (await pool.acquire("s")).base_url == A and fleet.asked == [A, A, A], "still within the second"
    assert pool._held == {"s": A}


@virtually
async def test_an_errand_takes_no_place_and_meets_full_agents_as_sessions_do() -> None:
    fleet = Fleet()
    pool = pool_of(fleet, A)
    async with pool.borrow() as lease:
        assert lease.base_url == A and (await pool.status())[0].leases == 0
    fleet.taken[A] = 4
    await asyncio.sleep(HEALTH_TTL_S)
    with pytest.raises(ProblemError) as caught:
        async with pool.borrow():
            pass
    assert (caught.value.code, caught.value.retry_after_s) == (ErrorCode.AT_CAPACITY, 5)
    assert caught.value.detail == "All 1 agents are full: try again later, or stop a session."


@virtually
async def test_a_session_of_an_agent_that_is_none_of_ours_any_more_has_no_place() -> None:
    pool = pool_of(Fleet(), A)
    assert pool.adopt("s", B) is None and pool._held == {}
    lease = pool.adopt("s", A)
    assert lease is not None and lease.headers == {"Authorization": "Bearer key"}
    assert (await pool.status())[0].leases == 1
