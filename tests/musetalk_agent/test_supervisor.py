"""Loops that are restarted: what counts as a failure, how long the back-off is, and what ends them."""

from __future__ import annotations

import asyncio

import pytest

from musetalk_agent.agent_metrics import LOOP_FAILURES
from musetalk_agent.tasks import supervise


async def test_a_loop_is_restarted_after_any_error_with_a_growing_back_off_until_it_returns() -> None:
    runs = 0
    slept: list[float] = []

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise asyncio.CancelledError  # a future of the SDK's that was cancelled, and not this task
        if runs < 9:
            raise Exception("bare")

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    before = LOOP_FAILURES.labels("test")._value.get()
    await supervise("test", loop, sleep)
    assert slept == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert LOOP_FAILURES.labels("test")._value.get() - before == 8


async def test_cancelling_ends_a_loop_that_runs_and_one_that_waits_to_run_again() -> None:
    async def runs() -> None:
        await asyncio.Event().wait()

    async def breaks() -> None:
        raise ValueError

    for loop in (runs, breaks):
        task = asyncio.create_task(supervise("test", loop))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
