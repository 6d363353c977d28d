"""Background loops start again when they fail, and every step of a clean-up runs."""

from __future__ import annotations

import asyncio
import logging

import pytest

from orchestrator.metrics import Metrics
from orchestrator.supervision import LAST_BACKOFF_S, run_each, supervise
from tests.waiting import NEVER_S


class Loop:
    """A loop that ends as its script says, then runs until it is cancelled."""

    def __init__(self, *ends: BaseException) -> None:
        self._ends = list(ends)
        self.runs = 0
        self.steady = asyncio.Event()
        self.cancelled = False

    async def run(self) -> None:
        self.runs += 1
        if self._ends:
            raise self._ends.pop(0)
        self.steady.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


async def test_a_loop_that_fails_starts_again_and_its_failures_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    metrics, loop = Metrics(), Loop(KeyError("a"), ValueError("b"), asyncio.CancelledError())
    task = asyncio.create_task(supervise("sweep", loop.run, metrics, backoff_s=0.0))
    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(NEVER_S):
            await loop.steady.wait()
    assert loop.runs == 4
    assert metrics.registry.get_sample_value("avatar_loop_failures_total", {"loop": "sweep"}) == 3
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        KeyError,
        ValueError,
        asyncio.CancelledError,
    ]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() and loop.cancelled


async def test_a_loop_that_returns_is_over() -> None:
    runs: list[int] = []

    async def once() -> None:
        runs.append(1)

    async with asyncio.timeout(NEVER_S):
        await supervise("once", once, None)
    assert runs == [1]


async def test_the_back_off_doubles_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(delay: float) -> None:
        waits.append(delay)
        if len(waits) == 9:
            raise SystemExit  # ends the test's own task, as nothing else may

    monkeypatch.setattr("orchestrator.supervision.asyncio.sleep", note)
    with pytest.raises(SystemExit):
        await supervise("broken", Loop(*[OSError()] * 9).run, None, backoff_s=0.5)
    assert waits == [0.5, 1, 2, 4, 8, 16, LAST_BACKOFF_S, LAST_BACKOFF_S, LAST_BACKOFF_S]


async def test_every_step_of_a_clean_up_runs_whatever_the_others_do() -> None:
    done: list[str] = []

    async def fails() -> None:
        done.append("fails")
        raise RuntimeError("broken")

    async def hangs() -> None:
        done.append("hangs")
        await asyncio.Event().wait()

    async def works() -> None:
        done.append("works")

    failed = await run_each(("a", fails), ("b", hangs), ("c", works), within_s=0.05)
    assert (done, failed) == (["fails", "hangs", "works"], ["a", "b"])


async def test_a_clean_up_that_is_cancelled_still_runs_the_rest_and_then_says_so() -> None:
    done: list[str] = []
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def works() -> None:
        done.append("works")

    task = asyncio.create_task(run_each(("a", hangs), ("b", works), within_s=60))
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() and done == ["works"]


async def test_a_step_that_waited_for_a_cancelled_task_is_a_failure_and_no_cancellation() -> None:
    done: list[str] = []

    async def waits_for_another() -> None:
        raise asyncio.CancelledError  # as `await task` does when somebody has cancelled that task

    async def notes() -> None:
        done.append("last")

    assert await run_each(("first", waits_for_another), ("last", notes), within_s=5) == ["first"]
    assert done == ["last"]


async def test_a_clean_up_that_is_cancelled_twice_still_runs_every_step() -> None:
    begun = [asyncio.Event(), asyncio.Event()]
    done: list[str] = []

    async def hangs(index: int) -> None:
        begun[index].set()
        await asyncio.Event().wait()

    async def notes() -> None:
        done.append("last")

    steps = (("0", lambda: hangs(0)), ("1", lambda: hangs(1)), ("last", notes))
    task = asyncio.create_task(run_each(*steps, within_s=60))
    async with asyncio.timeout(NEVER_S):
        for each in begun:
            await each.wait()
            task.cancel()
        await asyncio.wait({task})
    assert task.cancelled() and done == ["last"]
