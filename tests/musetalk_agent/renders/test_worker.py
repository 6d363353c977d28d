"""A render worker makes what waits, also when its queue or a ticket breaks, and gives back what it holds when it ends."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.renders import worker, worker_command
from musetalk_agent.renders.render_job import RenderJobs
from musetalk_agent.renders.worker import RenderWorker
from tests.waiting import until

TICKET = RenderTicket(render_id=f"ren_{1:024x}")
Do = Callable[[], Any]


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_POLL_S", 0.01)
    monkeypatch.setattr(worker, "_ALIVE_S", 0.01)


class Jobs:
    """Stands in for `RenderJobs.do`: remembers the tickets that it did, and what the next one does instead."""

    def __init__(self) -> None:
        self.done: list[RenderTicket] = []
        self.begun = asyncio.Event()
        self.instead: list[Do] = []

    async def do(self, ticket: RenderTicket) -> None:
        self.begun.set()
        if self.instead:
            await self.instead.pop(0)()
        self.done.append(ticket)


@pytest.fixture
async def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    made = Jobs()

    async def do(_: RenderJobs, ticket: RenderTicket) -> None:
        await made.do(ticket)

    monkeypatch.setattr(RenderJobs, "do", do)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> AgentSettings:
    return AgentSettings(
        agent_api_key=SecretStr("k"), engine="pattern", cache_dir=tmp_path / "cache", renders_dir=tmp_path / "renders"
    )


@pytest.fixture
def queue(tmp_path: Path) -> Any:
    (tmp_path / "renders").mkdir()
    with RenderQueue(default_target(tmp_path / "renders")) as opened:
        yield opened


@asynccontextmanager
async def working(settings: AgentSettings) -> AsyncIterator[RenderWorker]:
    made = RenderWorker(settings, "one", stay=True)
    running = asyncio.create_task(made.run())
    try:
        yield made
        made.ending.set()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _raises() -> None:
    raise ValueError("broken on purpose")


async def _never() -> None:
    await asyncio.Event().wait()


async def test_it_makes_what_waits_and_keeps_nothing(settings: AgentSettings, queue: RenderQueue, jobs: Jobs) -> None:
    queue.put(TICKET)
    async with working(settings) as made:
        await until(lambda: jobs.done == [TICKET] and not made.holds)
    assert queue.waiting() == 0 and queue.give_back("one") == 0


async def test_it_takes_nothing_while_sessions_need_the_machine(
    settings: AgentSettings, queue: RenderQueue, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    step = RenderWorker._step

    async def counted(self: RenderWorker, *given: Any) -> bool:
        looked.append(found := await step(self, *given))
        return found

    monkeypatch.setattr(RenderWorker, "_step", counted)
    async with working(settings) as made:
        made.hold()
        queue.put(TICKET)
        seen = len(looked)
        await until(lambda: len(looked) > seen + 2)
        assert queue.waiting() == 1 and not jobs.done
        made.go_on()
        await until(lambda: jobs.done == [TICKET])


async def test_a_ticket_that_breaks_waits_again(settings: AgentSettings, queue: RenderQueue, jobs: Jobs) -> None:
    jobs.instead = [_raises]
    queue.put(TICKET)
    async with working(settings) as made:
        await until(lambda: jobs.done == [TICKET] and not made.holds)
    assert queue.waiting() == 0 and queue.give_back("one") == 0


@pytest.mark.parametrize("broken", ["take", "done", "give_back"])
async def test_a_queue_that_is_away_for_a_moment_loses_nothing(
    settings: AgentSettings, queue: RenderQueue, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    works = getattr(RenderQueue, broken)
    failed: list[str] = []

    def fails_once(self: RenderQueue, *given: Any) -> Any:
        if not failed:
            failed.append(broken)
            raise OSError("the queue is away")
        return works(self, *given)

    monkeypatch.setattr(RenderQueue, broken, fails_once)
    jobs.instead = [_raises] if broken == "give_back" else []
    times = 2 if broken == "done" else 1  # a ticket that may not be done is done once more
    queue.put(TICKET)
    async with working(settings) as made:
        await until(lambda: len(jobs.done) == times and not made.holds)
    assert failed
    assert queue.waiting() == 0 and queue.give_back("one") == 0


async def test_what_it_holds_when_it_ends_waits_again(settings: AgentSettings, queue: RenderQueue, jobs: Jobs) -> None:
    jobs.instead = [_never]
    queue.put(TICKET)
    async with working(settings):
        await jobs.begun.wait()
    assert queue.waiting() == 1 and not jobs.done


async def test_cancelling_it_ends_its_ticket_too(settings: AgentSettings, queue: RenderQueue, jobs: Jobs) -> None:
    ended = asyncio.Event()

    async def until_cancelled() -> None:
        try:
            await _never()
        finally:
            ended.set()

    jobs.instead = [until_cancelled]
    queue.put(TICKET)
    running = asyncio.create_task(RenderWorker(settings, "one", stay=True).run())
    await jobs.begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set() and queue.waiting() == 1


async def test_one_that_does_not_stay_ends_without_work(
    settings: AgentSettings, queue: RenderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_IDLE_S", 0.0)
    await RenderWorker(settings, "one").run()
    assert queue.waiting() == 0


def test_a_worker_needs_a_folder(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RENDERS_DIR", raising=False)
    parser = argparse.ArgumentParser()
    worker_command.add_arguments(parser)
    assert worker_command.run(parser.parse_args([])) == 2
    assert "RENDERS_DIR is not set" in capsys.readouterr().err
    with pytest.raises(ValueError, match="RENDERS_DIR"):
        RenderWorker(AgentSettings(agent_api_key=SecretStr("k"), engine="pattern"))
