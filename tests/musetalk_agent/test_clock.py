"""Time that is passed in: on both clocks a sleeper wakes at its moment and not before, and waiting tells whether the event came."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.clock import Clock, MonotonicClock, VirtualClock, utc_now, utc_text
from tests.waiting import NEVER_S, turns

DEADLINES = st.lists(st.integers(0, 40), max_size=12)


@given(DEADLINES, st.lists(st.integers(1, 12), min_size=1, max_size=6))
async def test_sleepers_wake_at_their_moment_in_the_order_of_their_deadlines(
    deadlines: list[int], runs: list[int]
) -> None:
    clock, woken = VirtualClock(), []

    async def sleep(number: int, deadline: int) -> None:
        await clock.sleep_until(deadline)
        woken.append((clock.now(), deadline, number))

    tasks = [asyncio.create_task(sleep(number, deadline)) for number, deadline in enumerate(deadlines)]
    until = 0
    for seconds in runs:
        until += seconds
        await clock.run(until)
        assert clock.now() == until
        assert sorted(number for *_, number in woken) == [
            n for n, deadline in enumerate(deadlines) if deadline <= until
        ]
    assert all(now == deadline for now, deadline, _ in woken)
    assert woken == sorted(woken), "those of one moment in the order in which they went to sleep"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_time_stands_still_while_nobody_winds_it_on() -> None:
    clock = VirtualClock(100.0)
    sleeper = asyncio.create_task(clock.sleep_until(100.5))
    await turns()
    assert clock.now() == 100.0 and not sleeper.done()
    await clock.run(100.4)
    assert not sleeper.done()
    await clock.run(101.0)
    assert sleeper.done() and clock.now() == 101.0
    await clock.run(50.0)
    assert clock.now() == 101.0, "and it never goes back"


async def test_what_a_sleeper_does_at_its_moment_may_lead_to_more_sleep_within_the_same_run() -> None:
    clock, beats = VirtualClock(), []

    async def beat() -> None:
        for number in range(1, 6):
            await clock.sleep_until(number * 0.04)
            beats.append(clock.now())

    task = asyncio.create_task(beat())
    await clock.run(1.0)
    assert task.done() and beats == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])


async def test_a_sleeper_that_is_cancelled_holds_up_nobody() -> None:
    clock = VirtualClock()
    gone, stays = (asyncio.create_task(clock.sleep_until(at)) for at in (1.0, 2.0))
    await turns()
    gone.cancel()
    await clock.run(5.0)
    assert gone.cancelled() and stays.done() and not stays.cancelled()


async def test_time_waits_for_threads_that_work() -> None:
    """Else a frame that takes a thread a millisecond would be late by whole virtual seconds."""
    clock, gate = VirtualClock(), threading.Event()
    finished_at = None

    async def work() -> None:
        nonlocal finished_at
        with clock.working():
            await asyncio.to_thread(gate.wait, NEVER_S)
        finished_at = clock.now()

    task = asyncio.create_task(work())
    await turns()
    winding = asyncio.create_task(clock.run(10.0))
    await turns()
    assert clock.now() == 0.0 and not winding.done()
    gate.set()
    await winding
    assert task.done() and finished_at == 0.0 and clock.now() == 10.0


async def test_work_that_fails_does_not_stop_the_clock() -> None:
    clock = VirtualClock()
    with pytest.raises(ValueError, match="broken"), clock.working():
        raise ValueError("broken")
    await clock.run(1.0)
    assert clock.now() == 1.0


@pytest.mark.parametrize("make", [MonotonicClock, VirtualClock])
@pytest.mark.parametrize("when", ["before", "meanwhile", "never"])
async def test_waiting_tells_whether_the_event_came_and_takes_it(
    make: type[MonotonicClock | VirtualClock], when: str
) -> None:
    clock, event = make(), asyncio.Event()
    if when == "before":
        event.set()
    far = NEVER_S if when != "never" else 0.01
    waiting = asyncio.create_task(clock.wait(event, clock.now() + far))
    await turns()
    if when == "meanwhile":
        assert not waiting.done()
        event.set()
    if isinstance(clock, VirtualClock):
        await clock.run(0.02)
    assert await waiting is (when != "never")
    assert not event.is_set(), "the next wait is for the next one"


@pytest.mark.parametrize("make", [MonotonicClock, VirtualClock])
async def test_a_deadline_that_is_past_costs_one_turn_and_no_time(make: type[MonotonicClock | VirtualClock]) -> None:
    clock: Clock = make()
    begun = clock.now()
    async with asyncio.timeout(NEVER_S):
        for deadline in (begun, begun - 100, float("-inf")):
            await clock.sleep_until(deadline)
        assert not await clock.wait(asyncio.Event(), begun - 1)
    if isinstance(clock, VirtualClock):
        assert clock.now() == begun


@pytest.mark.parametrize("make", [MonotonicClock, VirtualClock])
async def test_who_waits_may_be_cancelled_and_leaves_nothing_and_the_event_as_it_was(
    make: type[MonotonicClock | VirtualClock],
) -> None:
    clock, event = make(), asyncio.Event()
    waiting = asyncio.create_task(clock.wait(event, clock.now() + NEVER_S))
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    event.set()
    assert await clock.wait(event, clock.now() + NEVER_S)


async def test_the_machine_s_clock_sleeps_no_less_than_it_was_asked() -> None:
    clock = MonotonicClock()
    deadline = clock.now() + 0.02
    await clock.sleep_until(deadline)
    assert clock.now() >= deadline - 0.001  # the event loop's own resolution
    with clock.working():
        assert clock.now() >= deadline - 0.001


def test_the_wall_clock_is_utc_to_the_millisecond() -> None:
    reported = utc_now()
    assert reported.endswith("Z") and len(reported) == len("2026-11-28T20:53:00.123Z")
    assert abs(datetime.fromisoformat(reported) - datetime.now(UTC)) < timedelta(seconds=NEVER_S)


def test_seconds_since_1970_are_written_as_the_wall_clock_is() -> None:
    assert utc_text(1_795_899_180.1234) == "2026-11-28T20:53:00.123Z"
    assert utc_text(1_795_899_180.0) == "2026-11-28T20:53:00.000Z"
    assert utc_text(None) is None
