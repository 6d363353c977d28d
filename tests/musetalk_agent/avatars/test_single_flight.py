"""Work that several callers share: begun once, ended with the last of them."""

from __future__ import annotations

import asyncio
import gc

import pytest

from musetalk_agent.avatars.library import SingleFlight
from tests.waiting import turns


class Work:
    """A piece of work that ends when it is let."""

    def __init__(self, result: object = "made") -> None:
        self.begun = self.cancelled = 0
        self.result = result
        self.may_end = asyncio.Event()

    async def __call__(self) -> object:
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def boarding(flights: SingleFlight, work: Work, count: int, key: str = "a") -> list[asyncio.Task[object]]:
    """Callers who have all begun to wait."""
    callers = [asyncio.create_task(flights.run(key, work)) for _ in range(count)]
    await turns()
    return callers


async def test_callers_of_one_key_share_one_result() -> None:
    flights, work = SingleFlight(), Work(result=object())
    callers = await boarding(flights, work, 5)
    assert len(flights) == 1 and work.begun == 1
    work.may_end.set()
    assert {id(result) for result in await asyncio.gather(*callers)} == {id(work.result)}
    assert len(flights) == 0


async def test_other_keys_are_other_work() -> None:
    flights, one, other = SingleFlight(), Work("one"), Work("other")
    callers = [*await boarding(flights, one, 1, "a"), *await boarding(flights, other, 1, "b")]
    assert len(flights) == 2
    one.may_end.set()
    other.may_end.set()
    assert await asyncio.gather(*callers) == ["one", "other"]


async def test_a_result_is_not_kept() -> None:
    flights, work = SingleFlight(), Work()
    work.may_end.set()
    assert [await flights.run("a", work) for _ in range(3)] == ["made"] * 3
    assert work.begun == 3


async def test_an_error_is_everybody_s_and_the_next_caller_begins_anew() -> None:
    flights, work = SingleFlight(), Work(ValueError("no face"))
    callers = await boarding(flights, work, 3)
    work.may_end.set()
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [str(error) for error in errors] == ["no face"] * 3 and len(flights) == 0
    work.result = "made"
    assert await flights.run("a", work) == "made"


async def test_who_leaves_ends_the_own_wait_only() -> None:
    flights, work = SingleFlight(), Work()
    first, second = await boarding(flights, work, 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert work.cancelled == 0 and len(flights) == 1
    work.may_end.set()
    assert await second == "made"


async def test_when_the_last_leaves_the_work_is_cancelled_and_nobody_boards_it() -> None:
    flights, work, later = SingleFlight(), Work(), Work("later")
    callers = await boarding(flights, work, 2)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert len(flights) == 0
    later.may_end.set()
    assert await flights.run("a", later) == "later"
    await turns()
    assert work.cancelled == 1


async def test_work_that_ends_slowly_when_cancelled_does_not_take_its_successor_off_the_list() -> None:
    flights, tidied = SingleFlight(), asyncio.Event()

    async def tidying() -> object:
        try:
            await asyncio.Event().wait()
        finally:
            await tidied.wait()

    first = asyncio.create_task(flights.run("a", tidying))
    await turns()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    work = Work()
    (second,) = await boarding(flights, work, 1)
    tidied.set()
    await turns()
    assert len(flights) == 1, "the second is still under way"
    (third,) = await boarding(flights, work, 1)
    work.may_end.set()
    assert await asyncio.gather(second, third) == ["made"] * 2 and work.begun == 1


async def test_aborting_cancels_all_of_it_and_twice_is_once() -> None:
    flights, one, other = SingleFlight(), Work(), Work()
    callers = [*await boarding(flights, one, 2, "a"), *await boarding(flights, other, 1, "b")]
    flights.abort()
    flights.abort()
    assert len(flights) == 0
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 3
    assert (one.cancelled, other.cancelled) == (1, 1)


async def test_an_error_that_nobody_waited_for_is_not_reported_as_lost() -> None:
    flights, reported = SingleFlight(), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))

    async def failing() -> object:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it was being cancelled")

    caller = asyncio.create_task(flights.run("a", failing))
    await turns()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await turns()
    gc.collect()
    assert reported == []
