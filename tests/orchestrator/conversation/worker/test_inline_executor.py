"""Work is done in the thread that asks for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestrator.conversation.worker.inline_executor import InlineEventLoop, InlineExecutor


async def test_the_result_comes_from_the_same_thread() -> None:
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(InlineExecutor(), threading.get_ident) == threading.get_ident()


async def test_a_failure_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        await asyncio.get_running_loop().run_in_executor(InlineExecutor(), lambda: 1 / 0)


def test_in_a_loop_of_its_own_the_work_is_done_without_a_turn_of_the_loop() -> None:
    turns = 0

    async def work() -> tuple[int, int]:
        loop = asyncio.get_running_loop()

        def turn() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        turn()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(InlineExecutor(), lambda: 1 / 0)
        found = await loop.run_in_executor(InlineExecutor(), lambda number: number + 1, 41)
        inline = turns
        assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()
        return found, inline

    with asyncio.Runner(loop_factory=InlineEventLoop) as runner:
        assert runner.run(work()) == (42, 1)
    assert turns > 1, "a thread's result takes some"
