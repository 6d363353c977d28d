"""The batcher: order, batches across sessions, the pipeline of two, failures that stay where they happen."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import pytest

from musetalk_agent.engines.batcher import QUEUE_LIMIT, Batcher
from musetalk_agent.engines.interface import InFlightBatch, PatchRequest
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.errors import EngineFailed, EngineUnavailable
from musetalk_agent.media_types import Patch
from tests.waiting import NEVER_S, until


class GatedEngine(PatternEngine):
    """A real engine that waits at a gate and writes down what it was given."""

    batch_sizes: Sequence[int] = (1, 4)

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.seen: list[list[int]] = []

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        self.entered.set()
        assert self.gate.wait(NEVER_S)
        self.seen.append([r.idle_index for r in batch])
        if any(r.idle_index == 666 for r in batch):
            raise RuntimeError("lips on fire")
        return super().infer(batch)


class CardFlight:
    """A batch on a card that a test drives."""

    def __init__(self, idle_indices: list[int], patches: list[Patch | None]) -> None:
        self.idle_indices, self.made = idle_indices, patches
        self.done, self.waited = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.host_work: threading.Event | None = None

    def wait(self) -> None:
        self.waited.set()
        assert self.done.wait(NEVER_S)
        if self.error is not None:
            raise self.error

    def patches(self) -> list[Patch | None]:
        if self.host_work is not None:
            assert self.host_work.wait(NEVER_S)
        return self.made


class CardEngine(PatternEngine):
    """Launches without computing: the test ends each batch."""

    batch_sizes: Sequence[int] = (1, 2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.flights: list[CardFlight] = []
        self.threads: set[str] = set()
        self.closed = 0
        self.refuse: Exception | None = None

    def launch(self, batch: Sequence[PatchRequest]) -> InFlightBatch:  # type: ignore[override]
        if self.refuse is not None:
            raise self.refuse
        self.threads.add(threading.current_thread().name)
        flight = CardFlight([r.idle_index for r in batch], self.infer(batch))
        self.flights.append(flight)
        return flight

    def close(self) -> None:
        self.closed += 1

    async def launched(self, count: int) -> list[list[int]]:
        """Poses by batch, once `count` batches were launched."""
        await until(lambda: len(self.flights) >= count)
        return [flight.idle_indices for flight in self.flights]

    def land(self) -> bool:
        """Ends every batch under way."""
        for flight in self.flights:
            flight.done.set()
        return True


def request(engine: PatternEngine, idle_index: int) -> PatchRequest:
    return PatchRequest(engine.open(pattern_bundle(64, 64, 25)), idle_index, np.ones(1, np.float32))


@asynccontextmanager
async def running(engine: PatternEngine, failures: list[EngineFailed] | None = None) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, None if failures is None else failures.append)
    await batcher.start()
    try:
        yield batcher
    finally:
        if isinstance(engine, CardEngine):
            engine.land()
        await batcher.aclose()


async def test_what_follows_a_patch_is_done_on_the_thread_that_made_it() -> None:
    engine = GatedEngine()
    seen: list[tuple[int, Patch | None, str]] = []

    def note(number: int, patch: Patch | None) -> None:
        seen.append((number, patch, threading.current_thread().name))

    async with running(engine) as batcher:
        cancelled = batcher.submit(request(engine, 1), 0.0, partial(note, 0))
        await until(engine.entered.is_set)
        cancelled.cancel()
        engine.gate.set()
        patch = await batcher.submit(request(engine, 1), 0.0, partial(note, 1))
    assert [(number, made is patch, thread) for number, made, thread in seen] == [(1, True, f"engine-{engine.name}")]


async def test_nothing_follows_a_patch_while_other_frames_wait_for_the_engine() -> None:
    engine = GatedEngine()
    seen: list[int] = []
    async with running(engine) as batcher:
        made = [
            batcher.submit(request(engine, 1), float(k), lambda _, k=k: seen.append(k))
            for k in range(2 * engine.batch_sizes[-1] + 1)
        ]
        engine.gate.set()
        await asyncio.gather(*made)
    assert seen in ([], [len(made) - 1])  # the last one only, and only where it was alone


async def test_nothing_follows_a_patch_on_the_thread_that_waits_for_a_device() -> None:
    engine = CardEngine()
    seen: list[Patch | None] = []
    async with running(engine) as batcher:
        made = batcher.submit(request(engine, 1), 0.0, seen.append)
        await engine.launched(1)
        engine.land()
        assert await made is not None and seen == []


async def test_earliest_deadline_first_in_batches() -> None:
    engine = GatedEngine()
    async with running(engine) as batcher:
        first = batcher.submit(request(engine, 0), 0.0)
        await asyncio.to_thread(engine.entered.wait, NEVER_S)
        rest = [
            batcher.submit(request(engine, idle_index), deadline)
            for idle_index, deadline in ((5, 5.0), (1, 1.0), (3, 3.0), (2, 2.0), (4, 4.0))
        ]
        rest[2].cancel()
        engine.gate.set()
        await asyncio.gather(first, *rest, return_exceptions=True)
    assert engine.seen == [[0], [1, 2, 4, 5]]
    statistics = batcher.statistics()
    assert (statistics.frames, statistics.batches, statistics.dropped) == (5, 2, 1)
    assert statistics.sizes == {1: 1, 4: 1}


async def test_a_sessions_frames_stay_in_order_whatever_their_deadlines() -> None:
    engine = GatedEngine()
    async with running(engine) as batcher:
        first = batcher.submit(request(engine, 0), 0.0)
        await asyncio.to_thread(engine.entered.wait, NEVER_S)
        one, other = request(engine, 0).session, request(engine, 0).session
        made = [
            batcher.submit(PatchRequest(session, idle_index, np.ones(1, np.float32)), deadline)
            for session, idle_index, deadline in (
                (one, 10, 9.0),
                (one, 11, 2.0),
                (other, 20, 5.0),
                (one, 12, 3.0),
                (other, 21, 9.5),
            )
        ]
        engine.gate.set()
        await asyncio.gather(first, *made)
    assert engine.seen == [[0], [20, 10, 11, 12], [21]]


async def test_a_batch_that_fails_fails_its_frames_and_no_others() -> None:
    engine = GatedEngine()
    engine.gate.set()
    async with running(engine) as batcher:
        with pytest.raises(RuntimeError, match="on fire"):
            await batcher.submit(request(engine, 666), 0.0)
        assert await batcher.submit(request(engine, 1), 0.0) is not None
        assert batcher.failed is None


async def test_a_full_queue_refuses_and_a_closed_one_too() -> None:
    engine = GatedEngine()
    async with running(engine) as batcher:
        shared = request(engine, 0)
        waiting = [batcher.submit(shared, 0.0)]
        await asyncio.to_thread(engine.entered.wait, NEVER_S)  # the launcher holds this one, and takes no more
        waiting += [batcher.submit(shared, 0.0) for _ in range(QUEUE_LIMIT + 1)]
        with pytest.raises(EngineUnavailable):
            await waiting[-1]
        engine.gate.set()
        await batcher.aclose()
        with pytest.raises(EngineUnavailable):
            await batcher.submit(shared, 0.0)
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_the_next_batch_is_launched_before_the_last_has_landed_and_no_third() -> None:
    engine = CardEngine()
    async with running(engine) as batcher:
        made = [batcher.submit(request(engine, idle_index), float(idle_index)) for idle_index in range(10)]
        await engine.launched(2)
        launched = sum(len(flight.idle_indices) for flight in engine.flights)
        assert len(engine.flights) == 2 and batcher.statistics().waiting == 10 - launched
        engine.flights[0].done.set()
        await asyncio.wait_for(made[0], NEVER_S)
        await engine.launched(3)
        assert not made[9].done()
        await until(lambda: engine.land() and all(future.done() for future in made))
    assert sorted(idle_index for flight in engine.flights for idle_index in flight.idle_indices) == list(range(10))
    assert engine.threads == {"engine-pattern"}


async def test_frames_gather_while_the_card_works() -> None:
    """Once a batch's length is known, a small next one waits for its end, so that it can grow."""
    engine = CardEngine()
    async with running(engine) as batcher:
        batcher.submit(request(engine, 0), 0.0)
        await engine.launched(1)
        engine.flights[0].done.set()
        await until(lambda: batcher.statistics().batches == 1)
        assert batcher._seconds[1] > 0  # the first taught how long a batch of one takes
        batcher._seconds[1] = 3600.0  # an hour, so that this machine's pace does not matter
        batcher.submit(request(engine, 0), 0.0)
        await engine.launched(2)
        for idle_index in (1, 2):
            batcher.submit(request(engine, idle_index), float(idle_index))
        assert len(engine.flights) == 2 and batcher.statistics().waiting == 2  # nothing behind the one under way yet
        with batcher._changed:
            batcher._expected_end = time.perf_counter()  # the hour is over
            batcher._changed.notify()
        assert (await engine.launched(3))[2] == [1, 2]
        assert not engine.flights[1].done.is_set()  # launched before it ended


async def test_host_work_on_patches_does_not_hold_up_the_card() -> None:
    engine = CardEngine()
    async with running(engine) as batcher:
        first = batcher.submit(request(engine, 0), 0.0)
        await engine.launched(1)
        gate = engine.flights[0].host_work = threading.Event()
        engine.flights[0].done.set()
        await until(lambda: batcher.statistics().batches == 1)
        batcher.submit(request(engine, 1), 1.0)
        assert await engine.launched(2) == [[0], [1]]
        assert not first.done()
        gate.set()
        assert await asyncio.wait_for(first, NEVER_S) is not None


async def test_a_device_that_fails_ends_the_batcher_and_says_so() -> None:
    engine, failures = CardEngine(), list[EngineFailed]()
    async with running(engine, failures) as batcher:
        under_way = batcher.submit(request(engine, 0), 0.0)
        await engine.launched(1)
        engine.flights[0].error = EngineFailed("the card is gone")
        shared = request(engine, 1).session
        waiting = [batcher.submit(PatchRequest(shared, 1, np.ones(1, np.float32)), 1.0) for _ in range(9)]
        await engine.launched(2)
        engine.flights[0].done.set()
        engine.flights[1].done.set()
        for future in (under_way, waiting[-1]):
            with pytest.raises(EngineFailed, match="gone"):
                await asyncio.wait_for(future, NEVER_S)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(error) for error in failures] == ["the card is gone"]
        assert batcher.failed is failures[0]
        with pytest.raises(EngineFailed, match="gone"):
            await batcher.submit(request(engine, 2), 2.0)
    assert engine.closed == 1


async def test_a_device_that_fails_while_launching_is_noticed() -> None:
    engine, failures = CardEngine(), list[EngineFailed]()
    engine.refuse = EngineFailed("no launch")
    async with running(engine, failures) as batcher:
        with pytest.raises(EngineFailed, match="no launch"):
            await asyncio.wait_for(batcher.submit(request(engine, 0), 0.0), NEVER_S)
        await asyncio.sleep(0)
        assert len(failures) == 1


async def test_what_was_cancelled_under_way_is_dropped_when_it_lands() -> None:
    engine = CardEngine()
    async with running(engine) as batcher:
        made = [batcher.submit(request(engine, idle_index), float(idle_index)) for idle_index in range(2)]
        await engine.launched(1)
        made[0].cancel()
        await until(lambda: engine.land() and made[1].done())
        assert made[0].cancelled() and made[1].result() is not None


async def test_busy_time_is_the_cards_not_the_sum_of_waits() -> None:
    engine = CardEngine()
    async with running(engine) as batcher:
        begun = time.perf_counter()
        made = [batcher.submit(request(engine, idle_index), float(idle_index)) for idle_index in range(8)]
        await engine.launched(2)
        await until(lambda: time.perf_counter() - begun > 0.1)  # so long both are on the card
        await until(lambda: engine.land() and all(future.done() for future in made))
        busy = batcher.statistics().busy_s
        passed = time.perf_counter() - begun
    assert 0 < busy <= passed  # the sum of both would be more


async def test_the_watch_for_stuck_batches_goes_on_after_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, failures, calls = CardEngine(), list[EngineFailed](), 0
    batcher = Batcher(engine, failures.append, stuck_after_s=0.05)
    fail = batcher.fail

    def breaks_once(error: EngineFailed) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the watch broke")
        fail(error)

    monkeypatch.setattr(batcher, "fail", breaks_once)
    await batcher.start()
    try:
        batch = batcher.submit(request(engine, 0), 0.0)
        with pytest.raises(EngineFailed, match="has not answered"):
            await asyncio.wait_for(batch, NEVER_S)
        await asyncio.sleep(0)
        assert calls == 2 and len(failures) == 1
    finally:
        engine.land()
        await batcher.aclose()
