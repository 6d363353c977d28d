"""The pool over sticky sessions: the package's own client, real HTTP, fake agents as containers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents import modal_pool
from orchestrator.agents.agent_client import AgentClient
from orchestrator.agents.modal_pool import HEADER, ModalAgentPool, ModalOptions, ModalSessions, Ticket
from orchestrator.livekit_rooms import LiveKitKeys, TokenMinter
from orchestrator.session.deps import BackgroundTasks, SessionDeps
from orchestrator.session.model import ManagedSession, SessionOptions, SessionRequest
from orchestrator.session.session_failover import Placement
from tests.fakes.agent_server import AGENT_KEY, FakeAgent
from tests.fakes.serving import plain_config, serving
from tests.fakes.sticky_router import StickyRouter, router_server
from tests.waiting import NEVER_S, until

ORDER = SessionRequest(room="r", avatar=AvatarSource(), picture=Picture(), engine="pattern")
MINTER = TokenMinter(LiveKitKeys("ws://x", "ws://x", "devkey", "secretsecretsecretsecretsecret00"))


@dataclass
class Cloud:
    pool: ModalAgentPool
    router: StickyRouter
    agents: list[FakeAgent]
    make: Callable[..., ModalAgentPool]


@asynccontextmanager
async def cloud(
    monkeypatch: pytest.MonkeyPatch, containers: int = 2, places: int = 2, **options: Any
) -> AsyncIterator[Cloud]:
    """`options` are the pool's. A fake that answers late shows that the machine is slow, and not that an agent is ill."""
    monkeypatch.setattr("orchestrator.agents.agent_client._CONNECT_TIMEOUT_S", NEVER_S)
    async with AsyncExitStack() as stack:
        agents = [FakeAgent() for _ in range(containers)]
        urls = [await stack.enter_async_context(serving(plain_config(agent.app))) for agent in agents]
        router = StickyRouter(urls, max_concurrency=places)
        url = await stack.enter_async_context(router.running())
        server = await stack.enter_async_context(router_server(url, monkeypatch))
        monkeypatch.setattr("modal.Server.from_name", lambda app, name: server)
        client = AgentClient()
        stack.push_async_callback(client.aclose)

        def make(key: str = AGENT_KEY) -> ModalAgentPool:
            pool = ModalAgentPool(ModalSessions("app", "Agent"), key, client, ModalOptions(**options))
            stack.push_async_callback(pool.aclose)
            return pool

        yield Cloud(make(), router, agents, make)


def no_waiting(monkeypatch: pytest.MonkeyPatch, here: Cloud) -> None:
    """The time is over as soon as every place is taken."""
    start, router = here.pool._sticky.start, here.router

    async def in_time(idle_s: int) -> Ticket:
        if len(router.places) == router.max_concurrency * len(router.containers):
            raise TimeoutError
        return await start(idle_s)

    monkeypatch.setattr(here.pool._sticky, "start", in_time)


def token_of(lease: Any) -> str:
    return str(lease.headers[HEADER].removeprefix("Bearer "))


async def test_each_session_has_a_place_of_its_own_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch) as here:
        leases = [await here.pool.acquire(f"s{n}") for n in range(4)]
        assert len({lease.name for lease in leases}) == 4 and len({lease.base_url for lease in leases}) == 1
        assert [len(here.router.of(url)) for url in here.router.containers] == [2, 2]
        assert {place.idle_s for place in here.router.places.values()} == {120}
        here.pool.release("s0")
        here.pool.release("s0")
        here.pool.release("never there")
        await here.pool.aclose()
        assert here.router.ended == [token_of(leases[0])] and len(here.router.places) == 3


async def test_waiting_for_a_place_has_a_limit_and_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch, containers=1, places=1) as here:
        here.router.queue_s = 2 * NEVER_S
        await here.pool.acquire("s0")
        with monkeypatch.context() as hurried:
            hurried.setattr(here.pool, "_options", ModalOptions(wait_s=0.2))
            with pytest.raises(ProblemError) as caught:
                await here.pool.acquire("one too many")
        assert caught.value.code is ErrorCode.AT_CAPACITY and caught.value.retry_after_s == 5
        assert "none came within 0.2 s" in caught.value.detail
        await until(lambda: not here.router.waiting)
        here.pool.release("s0")
        assert await here.pool.acquire("again")
        assert (await here.pool.status())[0].usable, "a full fleet is not a broken one"


async def test_a_place_freed_while_somebody_waits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch, containers=1, places=1) as here:
        here.router.queue_s = 2 * NEVER_S
        await here.pool.acquire("s0")
        waiting = asyncio.create_task(here.pool.acquire("s1"))
        await until(lambda: here.router.waiting == 1)
        assert not waiting.done()
        here.pool.release("s0")
        assert (await waiting).name


@pytest.mark.parametrize("fault", ["draining", "status", "full", "hung"])
async def test_a_container_that_is_not_well_is_given_back(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    async with cloud(monkeypatch) as here:
        bad = here.agents[0]
        bad.draining, bad.hung = fault == "draining", fault == "hung"
        bad.status = "engine_failed" if fault == "status" else "ok"
        bad.sessions_max = 0 if fault == "full" else 8
        if bad.hung:
            monkeypatch.setattr("orchestrator.agents.agent_client._CONNECT_TIMEOUT_S", 2.0)
        lease = await here.pool.acquire("s")
        assert here.router.places[token_of(lease)].container == here.router.containers[1]
        await here.pool.aclose()
        assert here.router.of(here.router.containers[0]) == []
        bad.hung = False


async def test_none_that_is_well_is_not_the_same_as_none_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch, places=8) as here:
        for agent in here.agents:
            agent.status = "engine_failed"
        no_waiting(monkeypatch, here)
        with pytest.raises(ProblemError) as caught:
            await here.pool.acquire("s")
        assert caught.value.code is ErrorCode.AGENT_UNAVAILABLE
        assert not (await here.pool.status())[0].usable
        await here.pool.aclose()
        assert here.router.places == {}, "what was looked at was given back"


async def test_places_that_an_agent_refuses_make_another_container_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fleet promises six places a container, its agents hold three, and Modal fills one container before the next."""
    monkeypatch.setattr(modal_pool, "AGAIN_S", 0.01)
    async with cloud(monkeypatch, containers=3, places=6, wait_s=NEVER_S) as here:
        here.router.packs = True
        cold, here.router.containers = here.router.containers[1:], here.router.containers[:1]
        leases = [await here.pool.acquire(f"s{n}") for n in range(3)]
        here.agents[0].sessions_max = 0  # as many as it can
        waiting = [asyncio.create_task(here.pool.acquire(f"s{n}")) for n in (3, 4)]
        await until(lambda: len(here.router.of(here.router.containers[0])) == 6)
        assert not any(task.done() for task in waiting), "three places are refused, and kept"
        here.router.containers.append(cold[0])
        leases += await asyncio.gather(*waiting)
        assert [here.router.places[token_of(lease)].container for lease in leases[3:]] == [cold[0]] * 2
        await here.pool.aclose()
        assert len(here.router.places) == 5, "what was refused was given back"
        assert (await here.pool.status())[0].usable


async def test_a_fleet_of_broken_containers_is_not_made_larger_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch, containers=6, places=1, wait_s=NEVER_S) as here:
        for agent in here.agents:
            agent.status = "engine_failed"
        with pytest.raises(ProblemError) as caught:
            await here.pool.acquire("s")
        assert caught.value.code is ErrorCode.AGENT_UNAVAILABLE and "engine_failed" in caught.value.detail
        await here.pool.aclose()
        assert len(here.router.ended) == modal_pool.BROKEN_MOST


async def test_containers_that_still_warm_up_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modal_pool, "AGAIN_S", 0.01)
    async with cloud(monkeypatch, containers=4, places=1, wait_s=NEVER_S) as here:
        for agent in here.agents:
            agent.status = "warming"
        waiting = asyncio.create_task(here.pool.acquire("s"))
        await until(lambda: len(here.router.places) == 4)
        assert not waiting.done()
        here.agents[2].status = "ok"
        for token in [t for t, place in here.router.places.items() if place.container == here.router.containers[2]]:
            del here.router.places[token]  # it comes free, and is asked for again
        lease = await waiting
        assert here.router.places[token_of(lease)].container == here.router.containers[2]


async def test_a_container_that_lost_a_session_is_taken_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch, places=4) as here:
        lease = await here.pool.acquire("s")
        lost = here.router.places[token_of(lease)].container
        here.pool.lost(lease)
        moved = await here.pool.acquire("s")
        assert here.router.places[token_of(moved)].container != lost
        other = here.agents[1 - here.router.containers.index(lost)]
        other.draining = True
        assert here.router.places[token_of(await here.pool.acquire("t"))].container == lost, "nothing else is there"


async def test_another_orchestrator_goes_on_with_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch) as here:
        lease = await here.pool.acquire("s")
        here.pool.detach("s")
        await here.pool.aclose()
        assert here.router.ended == []
        adopted = here.make().adopt("s", lease.name)
        assert adopted is not None and dict(adopted.headers) == dict(lease.headers)
        assert token_of(lease) not in lease.name + repr(lease), "the store sees it sealed"
        assert here.make("another key").adopt("s", lease.name) is None
        assert here.pool.adopt("s", "http://10.0.0.1:8090") is None


async def test_an_errand_takes_a_place_only_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch) as here:
        async with here.pool.borrow() as lease, here.pool.borrow() as other:
            assert {token_of(lease), token_of(other)} == set(here.router.places)
        await here.pool.aclose()
        assert here.router.places == {}


async def test_a_place_that_nobody_uses_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch, idle_s=60) as here:
        lease = await here.pool.acquire("s")
        for place in here.router.places.values():
            place.used_at -= 61
        client = AgentClient()
        with pytest.raises(ProblemError) as caught:
            await client.health(lease)
        await client.aclose()
        assert caught.value.code is ErrorCode.AGENT_UNAVAILABLE and here.router.refused == 1


async def test_a_way_to_each_container_and_one_line_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch, sessions_max=20) as here:
        assert (await here.pool.status())[0].usable, "none runs while nobody speaks, and that is well"
        for n in range(4):
            await here.pool.acquire(f"s{n}")
        assert len(here.pool.leases()) == 2
        (status,) = await here.pool.status()
        assert status.health is not None
        assert (status.health.capacity.sessions, status.health.capacity.sessions_max) == (4, 20)


async def test_containers_that_refused_are_avoided_after_their_places_were_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cloud(monkeypatch, places=8) as here:
        first = await here.pool.acquire("s")
        refused = here.router.places[token_of(first)].container
        here.pool.release("s")
        await here.pool.aclose()
        second = await here.pool.acquire("s", avoid=frozenset({first.name}))
        other = here.router.places[token_of(second)].container
        assert other != refused
        here.pool.detach("s")
        no_waiting(monkeypatch, here)
        with pytest.raises(ProblemError) as caught:
            await here.pool.acquire("s", avoid=frozenset({first.name, second.name}))
        assert caught.value.code is ErrorCode.AT_CAPACITY


@pytest.mark.parametrize(
    ("error", "code", "starts"),
    [(ErrorCode.AT_CAPACITY, "at_capacity", [1, 1]), (None, "agent_unavailable", [1, 1])],
    ids=["refuse", "die"],
)
async def test_a_start_that_every_container_fails_ends(
    monkeypatch: pytest.MonkeyPatch, error: ErrorCode | None, code: str, starts: list[int]
) -> None:
    async with cloud(monkeypatch, containers=2, places=8) as here:
        no_waiting(monkeypatch, here)
        for agent in here.agents:
            agent.start_error = ProblemError(error, "no") if error else None
            agent.start_breaks = error is None
        agents = AgentClient()
        placing = Placement(
            cast(
                "SessionDeps",
                SimpleNamespace(
                    pool=here.pool,
                    agents=agents,
                    minter=MINTER,
                    journal=Notes(),
                    background=BackgroundTasks(),
                    films=None,
                    avatars=None,
                ),
            ),
            SessionOptions(),
        )
        session = ManagedSession("ses_a", ORDER, time.time() + 60, asyncio.get_running_loop().create_future())
        async with asyncio.timeout(NEVER_S):
            with pytest.raises(ProblemError) as caught:
                await placing.place(session)
        await agents.aclose()
        await placing._services.background.aclose(0)
        assert caught.value.code == code
        assert [agent.starts for agent in here.agents] == starts


class Notes:
    """A ledger that nothing is written in."""

    def note(self, session_id: str) -> None:
        pass


async def test_modal_that_says_nothing_is_no_fleet_and_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cloud(monkeypatch) as here:
        monkeypatch.setattr("orchestrator.agents.modal_pool.CHECK_S", 0.1)
        monkeypatch.setattr(here.pool._sticky, "check", asyncio.Event().wait)
        async with asyncio.timeout(NEVER_S):
            (status,) = await here.pool.status()
        assert not status.usable
