"""Two threads per engine: one owns its device and launches batches, one waits for them, so that neither the card nor a session
waits for the other's work.

    submit ─► waiting frames, a queue a session ─► launcher: earliest deadline first ─► card ─► collector: wait, patches ─► future

While the card works on a batch the next is launched just before it ends: late enough to gather frames of more sessions, early
enough that the card never idles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from musetalk_agent.engines.base import Engine, Flight, PatchRequest
from musetalk_agent.errors import EngineFailed, EngineUnavailable
from musetalk_agent.media import Patch

log = logging.getLogger(__name__)

QUEUE_LIMIT = 1024
"""Most requests waiting at once over all sessions; each session keeps a handful in flight, so more means a leak."""
ON_DEVICE = 2
"""Batches given to the device at once: the one it works on and the next."""
UNCOLLECTED = 4
"""Batches launched and not yet delivered; more would mean that the host's work on patches is slower than the device."""
LAUNCH_AHEAD_S = 0.001
"""How long before the expected end of a batch the next is launched: longer than a launch takes (a graph's replay and some copies),
and a small part of a frame."""

Result = asyncio.Future[Patch | None]


@dataclass(slots=True, eq=False)
class _Job:
    deadline: float
    request: PatchRequest
    result: Result


@dataclass(slots=True, eq=False)
class _Batch:
    jobs: list[_Job]
    size: int
    begun: float
    flight: Flight | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """Work done since the start.

    Args:
        waiting: frames not yet launched.
        busy_s: seconds with at least one batch on the device.
        dropped: frames that were cancelled before they were launched.
        sizes: batches by number of frames.
    """

    waiting: int
    frames: int
    batches: int
    busy_s: float
    dropped: int = 0
    sizes: Mapping[int, int] | None = None


class Batcher:
    """Serves every session with one engine. Policy of a full queue: the request fails with `engine_unavailable`.

    A device that fails is final: the frames waiting and under way fail with `EngineFailed`, so does every later `submit`, and
    `on_failure` is called. Whoever owns the batcher closes it then and makes a new engine and a new batcher: weights and latents on
    a failed card are worth nothing.

    Args:
        on_failure: called once, on the event loop, when the device failed.
    """

    def __init__(self, engine: Engine, on_failure: Callable[[EngineFailed], None] | None = None) -> None:
        self.engine = engine
        self.failed: EngineFailed | None = None
        self._on_failure = on_failure
        self._sessions: dict[int, deque[_Job]] = {}  # by the actor's identity: a session's frames stay in order
        self._waiting = 0
        self._changed = threading.Condition()
        self._closed = False
        self._flying: deque[int] = deque()  # sizes of the batches on the device
        self._undelivered = 0
        self._launched: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._seconds: dict[int, float] = {}  # what a batch of a size took last
        self._expected_end = self._finished = 0.0
        self._frames = self._batches = self._dropped = 0
        self._sizes: dict[int, int] = {}
        self._busy_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._launcher = threading.Thread(target=self._launch_all, name=f"engine-{engine.name}", daemon=True)
        self._collector = threading.Thread(target=self._collect_all, name=f"engine-{engine.name}-collect", daemon=True)

    async def start(self) -> None:
        """Warms the engine up and starts the threads. Cancelling leaves the warm-up running; call `aclose` then."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.engine.warmup)
        self._launcher.start()
        self._collector.start()

    def submit(self, request: PatchRequest, deadline: float) -> Result:
        """Queues one frame that should be ready at `deadline` (monotonic seconds).

        The future fails with what the engine raised, or with `EngineUnavailable` when the queue is full or closed. Cancelling it
        drops the request if it has not begun. Frames of one actor are made in the order in which they came.
        """
        assert self._loop is not None
        result: Result = self._loop.create_future()
        with self._changed:
            if self.failed is not None:
                result.set_exception(self.failed)
            elif self._closed or self._waiting >= QUEUE_LIMIT:
                result.set_exception(EngineUnavailable("the engine takes no more frames now", limit=QUEUE_LIMIT))
            else:
                self._sessions.setdefault(id(request.actor), deque()).append(_Job(deadline, request, result))
                self._waiting += 1
                self._changed.notify()
        return result

    def statistics(self) -> BatcherStatistics:
        """A snapshot."""
        with self._changed:
            return BatcherStatistics(
                self._waiting,
                self._frames,
                self._batches,
                self._busy_s,
                self._dropped,
                dict(sorted(self._sizes.items())),
            )

    async def aclose(self) -> None:
        """Ends the threads and cancels what was waiting. Safe to call twice and before `start`."""
        with self._changed:
            self._closed = True
            waiting = self._take_all()
            self._changed.notify()
        for job in waiting:
            job.result.cancel()
        if self._launcher.is_alive():
            await asyncio.to_thread(self._launcher.join)
        if self._collector.is_alive():
            await asyncio.to_thread(self._collector.join)
        self.engine.close()

    # the launcher's thread

    def _launch_all(self) -> None:
        while (jobs := self._take()) is not None:
            if jobs:
                self._launched.put(self._launch(jobs))
        self._launched.put(None)

    def _take(self) -> list[_Job] | None:
        """The next batch, once it is time; None when it is over."""
        with self._changed:
            while not (self._closed or self.failed):
                patience = self._patience()
                if patience is not None and patience <= 0:
                    break
                self._changed.wait(patience)
            if self._closed or self.failed:
                return None
            jobs = self._earliest(self.engine.batch_sizes[-1])
            if jobs:
                self._undelivered += 1
                self._flying.append(self._size(len(jobs)))
            return jobs

    def _patience(self) -> float | None:
        """Seconds until the next batch should be launched; None for not before something changes."""
        if not self._waiting or len(self._flying) >= ON_DEVICE or self._undelivered >= UNCOLLECTED:
            return None
        if not self._flying or self._waiting >= self.engine.batch_sizes[-1]:
            return 0.0
        return self._expected_end - LAUNCH_AHEAD_S - time.perf_counter()

    def _earliest(self, most: int) -> list[_Job]:
        """Up to `most` jobs by deadline, each session's in its own order, the cancelled ones dropped."""
        jobs: list[_Job] = []
        while self._sessions and len(jobs) < most:
            key = min(self._sessions, key=lambda k: self._sessions[k][0].deadline)
            job = self._sessions[key].popleft()
            if not self._sessions[key]:
                del self._sessions[key]
            self._waiting -= 1
            if job.result.done():
                self._dropped += 1
            else:
                jobs.append(job)
        return jobs

    def _take_all(self) -> list[_Job]:
        waiting = [job for jobs in self._sessions.values() for job in jobs]
        self._sessions.clear()
        self._waiting = 0
        return waiting

    def _launch(self, jobs: list[_Job]) -> _Batch:
        batch = _Batch(jobs, self._size(len(jobs)), time.perf_counter())
        with self._changed:
            self._expected_end = max(batch.begun, self._expected_end) + self._seconds.get(batch.size, 0.0)
        try:
            batch.flight = self.engine.launch([job.request for job in jobs])
        except Exception as error:  # noqa: BLE001 - the thread serves every session: a frame that breaks must not end it
            batch.error = error
        return batch

    def _size(self, count: int) -> int:
        """The batch size that the engine makes of `count` frames."""
        return next((size for size in self.engine.batch_sizes if size >= count), count)

    # the collector's thread

    def _collect_all(self) -> None:
        while (batch := self._launched.get()) is not None:
            patches: Sequence[Patch | None] = ()
            try:
                if batch.flight is not None:
                    batch.flight.wait()
            except Exception as error:  # noqa: BLE001 - as above
                batch.error = error
            self._count(batch)
            try:
                if batch.flight is not None and batch.error is None:
                    patches = batch.flight.patches()
            except Exception as error:  # noqa: BLE001 - as above
                batch.error = error
            with self._changed:
                self._undelivered -= 1
                self._changed.notify()
            self._deliver(batch, patches)

    def _count(self, batch: _Batch) -> None:
        """The device is through with the batch."""
        now = time.perf_counter()
        with self._changed:
            spent = now - max(batch.begun, self._finished)
            self._finished = now
            self._seconds[batch.size] = spent
            self._busy_s += spent
            self._frames += len(batch.jobs)
            self._batches += 1
            self._sizes[len(batch.jobs)] = self._sizes.get(len(batch.jobs), 0) + 1
            self._flying.popleft()
            self._expected_end = now + sum(self._seconds.get(size, 0.0) for size in self._flying)
            self._changed.notify()

    def _deliver(self, batch: _Batch, patches: Sequence[Patch | None]) -> None:
        assert self._loop is not None
        if batch.error is not None:
            log.error(
                "engine failed on a batch",
                exc_info=batch.error,
                extra={"engine": self.engine.name, "batch": len(batch.jobs)},
            )
        if isinstance(batch.error, EngineFailed):
            self._fail(batch.error)
        with contextlib.suppress(RuntimeError):  # the loop is gone: so is everybody who waited
            self._loop.call_soon_threadsafe(_settle, batch.jobs, patches, batch.error)

    def _fail(self, error: EngineFailed) -> None:
        assert self._loop is not None
        with self._changed:
            if self.failed is not None:
                return
            self.failed = error
            waiting = self._take_all()
            self._changed.notify()
            if self._closed:  # nobody waits, and the owner is closing it already
                return
        self._loop.call_soon_threadsafe(_settle, waiting, (), error)
        if self._on_failure is not None:
            self._loop.call_soon_threadsafe(self._on_failure, error)


def _settle(jobs: Sequence[_Job], patches: Sequence[Patch | None], error: Exception | None) -> None:
    """On the event loop: hands results over. What was cancelled meanwhile is dropped here."""
    for index, job in enumerate(jobs):
        if job.result.done():
            continue
        if error is not None:
            job.result.set_exception(error)
        else:
            job.result.set_result(patches[index])
