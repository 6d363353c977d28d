"""Work is done in the thread that asks for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestrator.conversation.worker.inline_executor import InlineExecutor


async def test_the_result_comes_from_the_same_thread() -> None:
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(InlineExecutor(), threading.get_ident) == threading.get_ident()


async def test_a_failure_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        await asyncio.get_running_loop().run_in_executor(InlineExecutor(), lambda: 1 / 0)
