"""One thread per engine owns its device and serves every session: earliest deadline first, batches across sessions."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from musetalk_agent.engines.base import Engine, PatchRequest
from musetalk_agent.errors import EngineUnavailable
from musetalk_agent.media import Patch

log = logging.getLogger(__name__)

QUEUE_LIMIT = 1024
"""Most requests waiting at once over all sessions; each session keeps a handful in flight, so more means a leak."""

Result = asyncio.Future[Patch | None]


@dataclass(order=True, slots=True)
class _Job:
    deadline: float
    order: int
    request: PatchRequest = field(compare=False)
    result: Result = field(compare=False)


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """Work done since the start."""

    waiting: int
    frames: int
    batches: int
    busy_s: float


class Batcher:
    """Runs `engine.infer` on its own thread. Policy of a full queue: the request fails with `engine_unavailable`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._jobs: list[_Job] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._frames = self._batches = 0
        self._busy_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{engine.name}", daemon=True)

    async def start(self) -> None:
        """Warms the engine up and starts the thread. Cancelling leaves the warm-up running; call `aclose` then."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.engine.warmup)
        self._thread.start()

    def submit(self, request: PatchRequest, deadline: float) -> Result:
        """Queues one frame that should be ready at `deadline` (monotonic seconds).

        The future fails with what the engine raised, or with `EngineUnavailable` when the queue is full or closed. Cancelling it
        drops the request if it has not begun.
        """
        assert self._loop is not None
        result: Result = self._loop.create_future()
        with self._changed:
            if self._closed or len(self._jobs) >= QUEUE_LIMIT:
                result.set_exception(EngineUnavailable("the engine takes no more frames now", limit=QUEUE_LIMIT))
                return result
            heapq.heappush(self._jobs, _Job(deadline, next(self._order), request, result))
            self._changed.notify()
        return result

    def statistics(self) -> BatcherStatistics:
        """A snapshot."""
        return BatcherStatistics(len(self._jobs), self._frames, self._batches, self._busy_s)

    async def aclose(self) -> None:
        """Ends the thread and fails what was waiting. Safe to call twice and before `start`."""
        with self._changed:
            self._closed = True
            waiting, self._jobs = self._jobs, []
            self._changed.notify()
        for job in waiting:
            job.result.cancel()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self.engine.close()

    def _take(self) -> list[_Job]:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            most = self.engine.batch_sizes[-1]
            batch: list[_Job] = []
            while self._jobs and len(batch) < most:
                job = heapq.heappop(self._jobs)
                if not job.result.cancelled():
                    batch.append(job)
            return batch

    def _run(self) -> None:
        assert self._loop is not None
        while not self._closed:
            batch = self._take()
            if not batch:
                continue
            begun = time.perf_counter()
            try:
                patches: Sequence[Patch | None] | Exception = self.engine.infer([job.request for job in batch])
            except Exception as error:  # the thread serves every session: a frame that breaks must not end it
                log.exception("engine failed on a batch", extra={"engine": self.engine.name, "batch": len(batch)})
                patches = error
            self._busy_s += time.perf_counter() - begun
            self._frames += len(batch)
            self._batches += 1
            if not self._closed:
                self._loop.call_soon_threadsafe(_deliver, batch, patches)


def _deliver(batch: list[_Job], patches: Sequence[Patch | None] | Exception) -> None:
    for index, job in enumerate(batch):
        if job.result.done():
            continue
        if isinstance(patches, Exception):
            job.result.set_exception(patches)
        else:
            job.result.set_result(patches[index])
