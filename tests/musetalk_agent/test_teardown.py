"""Every step of an end runs; a blocking call that comes too late gives back what it made."""

from __future__ import annotations

import asyncio
import threading

import pytest

from musetalk_agent.tasks import Step, in_thread, tear_down
from tests.waiting import NEVER_S, until


class Steps:
    """Steps that fail in every way, and what was run."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.hangs = asyncio.Event()

    async def fine(self) -> None:
        self.ran.append("fine")

    async def raises(self) -> None:
        self.ran.append("raises")
        raise OSError("broken")

    async def cancelled(self) -> None:
        self.ran.append("cancelled")
        raise asyncio.CancelledError

    async def waits(self) -> None:
        self.ran.append("waits")
        await self.hangs.wait()

    async def stubborn(self) -> None:
        """Takes no notice of being cancelled."""
        self.ran.append("stubborn")
        while not self.hangs.is_set():
            try:
                await self.hangs.wait()
            except asyncio.CancelledError:
                continue


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musetalk_agent.tasks._CANCEL_S", 0.02)


async def test_every_step_runs_in_order_whatever_the_others_do() -> None:
    steps = Steps()
    names = ["raises", "cancelled", "waits", "stubborn", "fine"]
    failed = await tear_down("x", [Step(name, getattr(steps, name), 0.02) for name in names])
    assert steps.ran == names and failed == names[:-1]
    steps.hangs.set()
    await asyncio.sleep(0)


async def test_a_caller_that_is_cancelled_waits_for_the_steps_and_is_cancelled_then() -> None:
    steps = Steps()
    caller = asyncio.create_task(tear_down("x", [Step("waits", steps.waits, 30), Step("fine", steps.fine, 30)]))
    while not steps.ran:  # noqa: ASYNC110 - it has begun
        await asyncio.sleep(0)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    steps.hangs.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert steps.ran == ["waits", "fine"]


async def test_the_steps_survive_that_everything_is_cancelled() -> None:
    """As `asyncio.run` does at its end."""
    steps = Steps()
    before = asyncio.all_tasks()
    caller = asyncio.create_task(tear_down("x", [Step("waits", steps.waits, 30), Step("fine", steps.fine, 30)]))
    while not steps.ran:  # noqa: ASYNC110 - it has begun
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert steps.ran == ["waits", "fine"]


@pytest.mark.parametrize("late", [True, False])
async def test_what_a_cancelled_caller_does_not_take_is_given_back(late: bool) -> None:
    begun, gate, given = threading.Event(), threading.Event(), threading.Event()
    back: list[str] = []

    def work() -> str:
        begun.set()
        assert gate.wait(NEVER_S)
        return "made"

    def give_back(made: str) -> None:
        back.append(made)
        given.set()

    caller = asyncio.create_task(in_thread(work, "work", give_back))
    await until(begun.is_set)
    if late:
        caller.cancel()
        gate.set()
    else:  # the result arrives in the very turn of the loop in which the caller is cancelled
        loop = asyncio.get_running_loop()
        real = loop.call_soon_threadsafe

        def arrive(call: object, *args: object) -> object:
            return real(lambda: (call(), caller.cancel()))  # type: ignore[operator]  # a callback of the loop

        loop.call_soon_threadsafe = arrive  # type: ignore[method-assign,assignment]  # for this one call
        gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await until(given.is_set)
    assert back == ["made"]


async def test_a_result_and_an_error_reach_the_caller() -> None:
    assert await in_thread(lambda: 7, "seven") == 7

    def broken() -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        await in_thread(broken, "broken")
