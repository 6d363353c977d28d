"""The batcher: order, batches across sessions, failures that stay where they happen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from musetalk_agent.engines.base import PatchRequest
from musetalk_agent.engines.batcher import QUEUE_LIMIT, Batcher
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.errors import EngineUnavailable
from musetalk_agent.media import Patch


class GatedEngine(PatternEngine):
    """A real engine that waits at a gate and writes down what it was given."""

    batch_sizes = (1, 4)

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.seen: list[list[int]] = []

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        self.entered.set()
        assert self.gate.wait(5)
        self.seen.append([r.pose for r in batch])
        if any(r.pose == 666 for r in batch):
            raise RuntimeError("card on fire")
        return super().infer(batch)


def request(engine: PatternEngine, pose: int) -> PatchRequest:
    return PatchRequest(engine.open(pattern_bundle(64, 64, 25)), pose, np.ones(1, np.float32))


async def test_earliest_deadline_first_in_batches() -> None:
    engine = GatedEngine()
    batcher = Batcher(engine)
    await batcher.start()
    first = batcher.submit(request(engine, 0), 0.0)
    await asyncio.to_thread(engine.entered.wait, 5)
    rest = [
        batcher.submit(request(engine, pose), deadline)
        for pose, deadline in ((5, 5.0), (1, 1.0), (3, 3.0), (2, 2.0), (4, 4.0))
    ]
    rest[2].cancel()
    engine.gate.set()
    await asyncio.gather(first, *rest, return_exceptions=True)
    await batcher.aclose()
    assert engine.seen == [[0], [1, 2, 4, 5]]
    assert batcher.statistics().frames == 5


async def test_a_batch_that_fails_fails_its_frames_and_no_others() -> None:
    engine = GatedEngine()
    engine.gate.set()
    batcher = Batcher(engine)
    await batcher.start()
    with pytest.raises(RuntimeError, match="on fire"):
        await batcher.submit(request(engine, 666), 0.0)
    assert await batcher.submit(request(engine, 1), 0.0) is not None
    await batcher.aclose()


async def test_a_full_queue_refuses_and_a_closed_one_too() -> None:
    engine = GatedEngine()
    batcher = Batcher(engine)
    await batcher.start()
    shared = request(engine, 0)
    waiting = [batcher.submit(shared, 0.0) for _ in range(QUEUE_LIMIT + 2)]
    with pytest.raises(EngineUnavailable):
        await waiting[-1]
    engine.gate.set()
    await batcher.aclose()
    with pytest.raises(EngineUnavailable):
        await batcher.submit(shared, 0.0)
    await asyncio.gather(*waiting, return_exceptions=True)
    await batcher.aclose()
