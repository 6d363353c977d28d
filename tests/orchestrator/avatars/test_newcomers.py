"""Agents that come after avatars were prepared: they are warmed, once for each process, and nothing waits for it."""

from __future__ import annotations

import asyncio

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.avatars import newcomers
from orchestrator.avatars.avatar_library import Avatars
from orchestrator.avatars.newcomers import Newcomers
from tests.fakes.agent_server import FakeAgent
from tests.fakes.fleet import Fleet, fleet
from tests.orchestrator.routes.test_avatars import made, settled
from tests.waiting import until


def of(running: Fleet) -> Newcomers:
    avatars: Avatars = running.stage.app.state.context.avatars
    return avatars._newcomers


async def looked(running: Fleet) -> None:
    """One look, and all that comes of it."""
    for agent in running.stage.app.state.context.pool._known.values():
        agent.stale = True
    await of(running).look()
    await of(running).warmed()


def again(agent: FakeAgent) -> None:
    """The same address has another process, whose cache is empty."""
    agent.instance += "'"
    agent.avatars.clips.clear()
    agent.avatars.prepared.clear()


@pytest.fixture(autouse=True)
def looks_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "LOOK_S", 1e6)


async def test_an_agent_that_comes_later_gets_the_avatars_that_are_ready_newest_first() -> None:
    async with fleet(2) as running:
        clips = [bytes([k]) * 100 for k in range(3)]
        for clip in clips:
            await settled(running.stage, await made(running.stage, clip))
        await looked(running)
        one, other = running.agents.values()
        again(other)
        before = len(one.avatars.prepared)
        await looked(running)
        assert [other.avatars.clips[asked.avatar.avatar_id or ""] for asked in other.avatars.prepared] == clips[::-1]
        assert len(one.avatars.prepared) == before, "who was there is left alone"
        await looked(running)
        assert len(other.avatars.prepared) == 3, "once for each process"


async def test_no_more_than_the_newest_are_prepared_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "MOST", 1)
    async with fleet(1) as running:
        for k in range(3):
            await settled(running.stage, await made(running.stage, bytes([k]) * 100))
        (agent,) = running.agents.values()
        again(agent)
        await looked(running)
        assert list(agent.avatars.clips.values()) == [bytes([2]) * 100]


async def test_an_agent_that_refuses_or_is_away_disturbs_nothing() -> None:
    async with fleet(2) as running:
        await settled(running.stage, await made(running.stage))
        one, other = running.agents.values()
        again(one), again(other)
        one.avatars.prepare_error = ProblemError(ErrorCode.AT_CAPACITY, "full")
        one.avatars.refuses = one.avatars.prepare_error
        await looked(running)
        assert other.avatars.clips and not one.avatars.prepared
        await running.kill(one)
        again(other)
        await looked(running)
        assert len(other.avatars.prepared) == 1


async def test_a_service_that_ends_waits_for_no_warming() -> None:
    async with fleet(1) as running:
        await settled(running.stage, await made(running.stage))
        (agent,) = running.agents.values()
        again(agent)
        agent.avatars.may_prepare.clear()
        for known in running.stage.app.state.context.pool._known.values():
            known.stale = True
        await of(running).look()
        await until(lambda: agent.avatars.prepared)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("warm-", "new-agents"))]
