"""How a batcher ends: closed early, late and twice, in the middle of a batch, by an engine that breaks or never answers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from musetalk_agent.engines.batcher import Batcher, _settle
from musetalk_agent.engines.interface import CompletedBatch, InFlightBatch, PatchRequest
from musetalk_agent.engines.pattern import PatternEngine
from musetalk_agent.errors import EngineFailed, EngineUnavailable
from musetalk_agent.media_types import Box, Patch
from tests.musetalk_agent.engines.test_batcher import CardEngine, request, running
from tests.waiting import NEVER_S, until


class Engine(PatternEngine):
    """A pattern engine that notes what is done to it, and fails where a test wants it to."""

    def __init__(self, **fails: Exception) -> None:
        super().__init__()
        self.fails, self.calls = fails, list[str]()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def warmup(self) -> None:
        self._call("warmup")

    def close(self) -> None:
        self._call("close")


async def test_one_that_was_never_started_is_closed_with_its_engine() -> None:
    engine = Engine()
    await Batcher(engine).aclose()
    assert engine.calls == ["close"]


async def test_closing_twice_ends_no_thread_twice() -> None:
    engine = Engine()
    batcher = Batcher(engine)
    await batcher.start()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("engine-pattern")]
    assert {thread.name for thread in threads} >= {"engine-pattern", "engine-pattern-collect"}
    await batcher.aclose()
    await batcher.aclose()
    assert not any(thread.is_alive() for thread in threads)
    assert engine.calls == ["warmup", "close", "close"], "which an engine takes twice"


async def test_an_engine_that_does_not_warm_up_starts_no_thread() -> None:
    engine = Engine(warmup=EngineUnavailable("no memory"))
    batcher = Batcher(engine)
    with pytest.raises(EngineUnavailable, match="no memory"):
        await batcher.start()
    assert not batcher._launcher.is_alive() and not batcher._collector.is_alive()
    await batcher.aclose()
    assert engine.calls == ["warmup", "close"]


async def test_an_engine_that_cannot_be_closed_is_left_behind_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    batcher = Batcher(Engine(close=RuntimeError("the card is gone")))
    await batcher.start()
    with caplog.at_level(logging.WARNING):
        await batcher.aclose()
    assert "the card is gone" in caplog.text


async def test_what_waits_and_what_is_launched_is_cancelled_by_closing() -> None:
    engine = CardEngine()
    async with running(engine) as batcher:
        results = [batcher.submit(request(engine, idle_index), float(idle_index)) for idle_index in range(3)]
        await engine.launched(1)
        closing = asyncio.create_task(batcher.aclose())
        await until(lambda: any(result.cancelled() for result in results))
        engine.land()
        await closing
        assert all(result.done() for result in results)
        assert all(result.cancelled() or isinstance(result.result(), Patch) for result in results)
    assert engine.closed >= 1


async def test_after_the_end_nothing_is_taken_and_a_start_is_reported() -> None:
    engine = PatternEngine()
    async with running(engine) as batcher:
        batcher.check()
    with pytest.raises(EngineUnavailable, match="takes no more frames") as caught:
        await batcher.submit(request(engine, 0), 0.0)
    assert caught.value.limit == 1024
    with pytest.raises(EngineFailed, match="'pattern' was closed"):
        batcher.check()


async def test_a_failed_device_is_reported_to_starts_and_to_frames_in_its_own_words() -> None:
    engine, failures = CardEngine(), list[EngineFailed]()
    async with running(engine, failures) as batcher:
        engine.refuse = EngineFailed("the card fell off the bus")
        with pytest.raises(EngineFailed, match="fell off the bus"):
            await batcher.submit(request(engine, 0), 0.0)
        await until(lambda: bool(failures))
        with pytest.raises(EngineFailed, match="fell off the bus") as caught:
            batcher.check()
        assert caught.value.retry_after_s == 5
        with pytest.raises(EngineFailed, match="fell off the bus"):
            await batcher.submit(request(engine, 1), 0.0)
    assert len(failures) == 1


class WrongCount(PatternEngine):
    """Makes a patch too many or too few for frame 666."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def launch(self, batch: Sequence[PatchRequest]) -> CompletedBatch:
        made = self.infer(batch)
        if any(one.idle_index == 666 for one in batch):
            made = made[: len(made) + self.more] + made[: max(0, self.more)]
        return CompletedBatch(made)


@pytest.mark.parametrize("more", [-1, 1])
async def test_a_batch_of_another_number_of_patches_fails_alone(more: int) -> None:
    engine = WrongCount(more)
    async with running(engine) as batcher:
        with pytest.raises(RuntimeError, match=f"{1 + more} patches for 1 requests"):
            await batcher.submit(request(engine, 666), 0.0)
        assert isinstance(await batcher.submit(request(engine, 1), 0.0), Patch)
        assert batcher.failed is None
        statistics = batcher.statistics()
    assert (statistics.frames, statistics.batches, statistics.waiting) == (2, 2, 0)


async def test_an_error_of_a_batch_on_its_way_is_its_frames_alone(caplog: pytest.LogCaptureFixture) -> None:
    engine = CardEngine()
    async with running(engine) as batcher:
        bad = batcher.submit(request(engine, 0), 0.0)
        await engine.launched(1)
        engine.flights[0].error = ValueError("an odd batch")
        engine.land()
        with pytest.raises(ValueError, match="an odd batch"):
            await bad
        good = batcher.submit(request(engine, 1), 0.0)
        await engine.launched(2)
        engine.land()
        assert isinstance(await good, Patch) and batcher.failed is None
    assert caplog.text.count("engine failed on a batch") == 1


async def test_an_engine_that_fails_at_every_frame_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    engine = WrongCount(1)
    async with running(engine) as batcher:
        for _ in range(12):
            with pytest.raises(RuntimeError):
                await batcher.submit(request(engine, 666), 0.0)
    assert caplog.text.count("engine failed on a batch") == 1


async def test_a_device_that_never_answers_has_failed_and_closing_does_not_wait_for_it() -> None:
    """The batch that hangs is failed, so is the frame behind it, and the owner hears of it once."""
    engine, failures = CardEngine(), list[EngineFailed]()
    batcher = Batcher(engine, failures.append, stuck_after_s=0.05)
    await batcher.start()
    results = [batcher.submit(request(engine, idle_index), 0.0) for idle_index in range(6)]
    await until(lambda: bool(failures))
    for result in results:
        with pytest.raises(EngineFailed, match=r"has not answered for 0\.05 s"):
            await asyncio.wait_for(result, NEVER_S)
    engine.land()
    await batcher.aclose()
    assert len(failures) == 1 and engine.closed == 1


async def test_an_answer_that_comes_after_the_device_was_given_up_changes_nothing() -> None:
    engine, failures = CardEngine(), list[EngineFailed]()
    batcher = Batcher(engine, failures.append, stuck_after_s=0.05)
    await batcher.start()
    result = batcher.submit(request(engine, 0), 0.0)
    with pytest.raises(EngineFailed):
        await result
    engine.land()
    await until(lambda: not batcher._in_flight)
    assert isinstance(result.exception(), EngineFailed) and len(failures) == 1
    await batcher.aclose()


class Breaking(PatternEngine):
    """An engine whose likes cannot be asked for any more: an error in a thread of the batcher, outside any batch."""

    broken = False

    @property
    def batch_sizes(self) -> Sequence[int]:  # type: ignore[override]  # an attribute there
        if self.broken:
            raise KeyError("sizes")
        return (8,)


async def test_an_error_in_a_thread_of_its_own_fails_the_engine() -> None:
    engine, failures = Breaking(), list[EngineFailed]()
    async with running(engine, failures) as batcher:
        engine.broken = True
        with pytest.raises(EngineFailed, match="'pattern' broke: KeyError"):
            await batcher.submit(request(engine, 0), 0.0)
        await until(lambda: bool(failures))
        assert batcher.failed is failures[0]


async def test_results_come_to_their_own_frames() -> None:
    class Boxes(PatternEngine):
        """A patch whose box says which frame it was made for; none for every third."""

        batch_sizes = (4,)

        def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
            pixels = np.zeros((2, 2, 3), np.uint8)
            return [
                None if r.idle_index % 3 == 0 else Patch(Box(r.idle_index, 0, r.idle_index + 2, 2), pixels)
                for r in batch
            ]

    engine = Boxes()
    async with running(engine) as batcher:
        made = await asyncio.gather(
            *[batcher.submit(request(engine, idle_index), -float(idle_index)) for idle_index in range(20)]
        )
        sizes = batcher.statistics().sizes
    assert [None if patch is None else patch.box.x0 for patch in made] == [
        None if idle_index % 3 == 0 else idle_index for idle_index in range(20)
    ]
    assert sizes is not None and sum(size * count for size, count in sizes.items()) == 20 and max(sizes) <= 4


async def test_settling_leaves_alone_what_was_cancelled_meanwhile() -> None:
    loop = asyncio.get_running_loop()
    engine = PatternEngine()
    batcher = Batcher(engine)
    batcher._loop = loop
    for idle_index in range(3):
        batcher.submit(request(engine, idle_index), 0.0)
    jobs = batcher._pop_by_deadline(8)
    jobs[1].result.cancel()
    patches: list[Patch | None] = [None, None, Patch(Box(0, 0, 2, 2), np.zeros((2, 2, 3), np.uint8))]
    _settle(jobs, patches, None)
    _settle(jobs, (), EngineFailed("too late"))
    assert [job.result.cancelled() for job in jobs] == [False, True, False]
    assert jobs[0].result.result() is None and jobs[2].result.result() is patches[2]


def test_a_flight_that_landed_as_it_was_launched_has_its_patches() -> None:
    made: list[Patch | None] = [None]
    flight: InFlightBatch = CompletedBatch(made)
    flight.wait()
    assert flight.patches() is made


class Measured(CardEngine):
    """A card that has measured what its batches take."""

    took_s = 0.01

    def batch_seconds(self) -> Mapping[int, float]:
        return dict.fromkeys(range(9), self.took_s)


@pytest.mark.parametrize(("took_s", "limit_s"), [(0.001, 2.0), (0.2, 4.0), (10.0, 30.0)])
async def test_a_batch_may_take_twenty_times_what_was_measured(took_s: float, limit_s: float) -> None:
    engine = Measured()
    engine.took_s = took_s
    async with running(engine) as batcher:
        batch = batcher.submit(request(engine, 0), 0.0)
        await engine.launched(1)
        assert batcher._stuck_limit_s() == pytest.approx(limit_s)
        await until(lambda: engine.land() and batch.done())


async def test_time_in_which_the_process_stood_still_is_not_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps again and again, as when a machine sleeps: each jump counts as two looks of a tenth of the limit, no more."""
    engine, failures = Measured(), list[EngineFailed]()
    batcher = Batcher(engine, failures.append, stuck_after_s=600.0, stuck_least_s=600.0)
    await batcher.start()
    assert batcher._watch is not None
    batcher._watch.cancel()
    batch = batcher.submit(request(engine, 0), 0.0)
    await engine.launched(1)
    looks, now, sleep = 0, 0.0, asyncio.sleep

    async def jump(_: float) -> None:
        nonlocal looks, now
        looks, now = looks + 1, now + 100_000.0
        await sleep(0)

    monkeypatch.setattr("musetalk_agent.engines.batcher.time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr("musetalk_agent.engines.batcher.asyncio", SimpleNamespace(sleep=jump))
    await batcher._look_for_stuck_batches()
    monkeypatch.undo()
    assert looks == 7  # the first sees the batch, six of 120 s pass the limit
    with pytest.raises(EngineFailed, match="has not answered for 600 s"):
        await batch
    engine.land()
    await batcher.aclose()
