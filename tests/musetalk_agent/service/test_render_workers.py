"""The agent keeps render workers while there is something to do, has them wait for sessions, and outlives their death."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.service import render_workers
from musetalk_agent.service.render_workers import RenderWorkers, must_wait
from tests.waiting import until

TICKET = RenderTicket(render_id=f"ren_{1:024x}")
STAND_IN = """#!/bin/sh
# A worker's process: writes down its arguments and what its standard input says, and ends with that.
echo "$@" >"{folder}/arguments-$$"
exec cat >"{folder}/said-$$"
"""


class Fleet:
    """The workers of an agent, each a stand-in that writes into `folder`."""

    def __init__(self, folder: Path, queue: RenderQueue) -> None:
        self.folder, self.queue = folder, queue
        self.speaking = 0
        settings = AgentSettings(agent_api_key=SecretStr("k"), engine="pattern", renders_dir=folder / "renders")
        self.workers = RenderWorkers(settings, lambda: self.speaking, lambda: True)

    def begun(self) -> list[int]:
        """Processes that were ever started, in no order."""
        return [int(path.name.rpartition("-")[2]) for path in self.folder.glob("said-*")]

    def name(self, process: int) -> str:
        """What the queue knows a process by."""
        return (self.folder / f"arguments-{process}").read_text().split()[-1]

    def said(self, process: int) -> str:
        return (self.folder / f"said-{process}").read_text()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    stand_in = tmp_path / "worker"
    stand_in.write_text(STAND_IN.format(folder=tmp_path))
    stand_in.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(stand_in))
    monkeypatch.setattr(render_workers, "LOOK_S", 0.01)
    (tmp_path / "renders").mkdir()
    with RenderQueue(default_target(tmp_path / "renders")) as queue:
        yield Fleet(tmp_path, queue)


async def _ended(running: asyncio.Task[None]) -> None:
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def _lives(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


async def test_a_worker_begins_with_the_first_render_waits_and_ends_with_the_agent(fleet: Fleet) -> None:
    running = asyncio.create_task(fleet.workers.run())
    assert fleet.begun() == []
    fleet.queue.put(TICKET)
    await until(lambda: len(fleet.begun()) == 1)
    (process,) = fleet.begun()
    fleet.speaking = 1
    await until(lambda: fleet.said(process) == "wait\n")
    fleet.speaking = 0
    await until(lambda: fleet.said(process) == "wait\nwork\n")
    await _ended(running)
    assert not _lives(process) and len(fleet.begun()) == 1


async def test_what_a_dead_worker_held_waits_again_and_another_one_begins(fleet: Fleet) -> None:
    running = asyncio.create_task(fleet.workers.run())
    fleet.queue.put(TICKET)
    await until(lambda: len(fleet.begun()) == 1)
    (process,) = fleet.begun()
    assert fleet.queue.take(fleet.name(process)) is not None and fleet.queue.waiting() == 0
    os.kill(process, signal.SIGKILL)
    await until(lambda: len(fleet.begun()) == 2)
    assert fleet.queue.waiting() == 1
    await _ended(running)


async def test_what_a_worker_of_another_process_held_waits_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musetalk_agent.protocol.render_queue.SILENT_S", 0.0)
    fleet.queue.put(TICKET)
    assert fleet.queue.take("silent") is not None
    running = asyncio.create_task(fleet.workers.run())
    await until(lambda: len(fleet.begun()) == 1)
    await _ended(running)


@pytest.mark.parametrize(
    ("speaking", "on_card", "cores", "waits"),
    [(0, True, 8, False), (1, True, 8, True), (0, False, 1, False), (2, False, 2, False), (3, False, 2, True)],
)
def test_sessions_come_first(speaking: int, on_card: bool, cores: int, waits: bool) -> None:
    assert must_wait(speaking, on_card, cores) is waits
