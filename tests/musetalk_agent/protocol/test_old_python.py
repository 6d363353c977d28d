"""Time limits in clean-ups, which the oldest supported Python does not hold by itself."""

from __future__ import annotations

import asyncio

import pytest

from musetalk_agent.protocol.old_python import mend_timeouts

mend_timeouts()


async def test_a_time_limit_holds_in_a_clean_up_after_a_cancel() -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for step in ("one", "two"):
                try:
                    async with asyncio.timeout(0):
                        await asyncio.Event().wait()
                except TimeoutError:
                    steps.append(step)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["one", "two"]


async def test_a_cancel_inside_of_a_time_limit_is_a_cancel() -> None:
    async def work() -> None:
        async with asyncio.timeout(3600):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_outer_one_of_two_time_limits_is_the_one_that_expires() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0) as outer:
            async with asyncio.timeout(3600) as inner:
                await asyncio.Event().wait()
    assert outer.expired() and not inner.expired()
