"""Two threads per engine: one owns its device and launches batches, one waits for each batch and turns it into patches.

    submit ─► waiting frames, a queue a session ─► launcher: earliest deadline first ─► device ─► collector: wait, patches ─► future

An engine without a device has its patches when `launch` returns; they are delivered on the launcher's thread. While no other frame
waits for it, it does what follows a patch too (`submit`'s `then`), so that no other thread is woken for that; where frames wait,
other threads do that beside it.

While the device works on a batch the next is launched just before it ends: late enough to gather frames of more sessions, early
enough that the device never idles.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from musetalk_agent.engines.interface import CompletedBatch, Engine, InFlightBatch, PatchRequest
from musetalk_agent.errors import EngineFailed, EngineUnavailable
from musetalk_agent.media_types import Patch
from musetalk_agent.tasks import Step, in_thread, supervise, tear_down

log = logging.getLogger(__name__)

QUEUE_LIMIT = 1024
"""Most requests waiting at once over all sessions; each session keeps a handful in flight, so more means a leak."""
MAX_ON_DEVICE = 2
"""Batches given to the device at once: the one it works on and the next."""
MAX_UNDELIVERED = 4
"""Batches launched and not yet delivered; more would mean that the host's work on patches is slower than the device."""
LAUNCH_AHEAD_S = 0.001
"""How long before the expected end of a batch the next is launched: longer than a launch takes (a graph's replay and some copies),
and a small part of a frame."""
STUCK_S = 30.0
"""A batch that is not delivered after so long never will be: the slowest device that is allowed, MuseTalk on a processor, takes a
few seconds for its batches of one frame."""
STUCK_LEAST_S = 2.0
STUCK_TIMES = 20
"""Where an engine has measured how long its batches take, one that is not delivered after so many times as long, and two seconds
at least, never will be. The host's work and the batches ahead of it are a few times that; two seconds are more than a busy host
stumbles for."""
_CHECKS = 10  # for a stuck batch, in the time after which it counts as stuck
_RETRY_AFTER_S = 5
_BROKEN_LOGGED = 100  # one traceback for so many batches: an engine that fails on every frame does so 25 times a second
_JOIN_S = 3.0
"""A thread that has not ended so long after it should is inside a call of the device that does not return. It is left behind."""
_CLOSE_S = 5.0
"""Time for an engine to release its device."""

Result = asyncio.Future[Patch | None]


@dataclass(slots=True, eq=False)
class _Job:
    deadline: float
    request: PatchRequest
    result: Result
    then: Callable[[Patch | None], None] | None = None


@dataclass(slots=True, eq=False)
class _Batch:
    jobs: list[_Job]
    size: int
    begun: float
    in_flight: InFlightBatch | None = None
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
    `on_failure` is called. The owner then closes the batcher and makes a new engine and a new batcher: weights and latents on a
    failed card are lost.

    A batch that is not delivered within `STUCK_TIMES` the time that the engine measured for it is such a failure too
    (`stuck_after_s` where it measured none), and so is an error in one of the two threads.

    Args:
        on_failure: called once, on the event loop, when the device failed.
        stuck_after_s: seconds after which a device that does not answer has failed, at most.
        stuck_least_s: the same, at least.
    """

    def __init__(
        self,
        engine: Engine,
        on_failure: Callable[[EngineFailed], None] | None = None,
        stuck_after_s: float = STUCK_S,
        stuck_least_s: float = STUCK_LEAST_S,
    ) -> None:
        self.engine = engine
        self.failed: EngineFailed | None = None
        self._on_failure = on_failure
        self._stuck_after_s = stuck_after_s
        self._stuck_least_s = min(stuck_least_s, stuck_after_s)
        self._watch: asyncio.Task[None] | None = None
        self._in_flight: deque[_Batch] = deque()  # launched or being launched, and not delivered
        self._sessions: dict[int, deque[_Job]] = {}  # by the session's identity: a session's frames stay in order
        self._waiting = 0
        self._changed = threading.Condition()
        self._closed = False
        self._sizes_on_device: deque[int] = deque()  # sizes of the batches on the device
        self._undelivered = 0
        self._launched: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._seconds: dict[int, float] = {}  # what a batch of a size took last
        self._measured: Mapping[int, float] = {}  # the engine's own figures
        self._expected_end = self._finished = 0.0
        self._frames = self._batches = self._dropped = self._broken = 0
        self._sizes: dict[int, int] = {}
        self._busy_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._launcher = threading.Thread(
            target=self._guarded, args=(self._launch_all,), name=f"engine-{engine.name}", daemon=True
        )
        self._collector = threading.Thread(
            target=self._guarded, args=(self._collect_all,), name=f"engine-{engine.name}-collect", daemon=True
        )

    async def start(self) -> None:
        """Warms the engine up and starts the threads. Cancelling leaves the warm-up running; call `aclose` then."""
        self._loop = asyncio.get_running_loop()
        await in_thread(self.engine.warmup, f"engine-{self.engine.name}-warmup")
        self._measured = self.engine.batch_seconds()
        self._seconds.update(self._measured)
        self._launcher.start()
        self._collector.start()
        name = f"engine-{self.engine.name}-watch"
        self._watch = asyncio.create_task(supervise("engine-watch", self._look_for_stuck_batches), name=name)

    def check(self) -> None:
        """Raises `EngineFailed` when the device has failed or the batcher was closed: for a start, after each of its waits."""
        if self.failed is not None:
            raise EngineFailed(self.failed.detail, retry_after_s=_RETRY_AFTER_S)
        if self._closed:
            raise EngineFailed(f"The engine {self.engine.name!r} was closed.", retry_after_s=_RETRY_AFTER_S)

    def submit(
        self, request: PatchRequest, deadline: float, then: Callable[[Patch | None], None] | None = None
    ) -> Result:
        """Queues one frame that should be ready at `deadline` (monotonic seconds).

        `then` takes the patch on the engine's thread, before the future has it, where that thread waits for no device and no other
        frame for that thread: what a frame still needs is done there without another thread's help. It must not raise. Elsewhere it
        is left out.

        The future fails with what the engine raised, or with `EngineUnavailable` when the queue is full or closed. Cancelling it
        drops the request if it has not begun. Frames of one session are made in the order in which they came.
        """
        assert self._loop is not None
        result: Result = self._loop.create_future()
        with self._changed:
            if self.failed is not None:
                result.set_exception(self.failed)
            elif self._closed or self._waiting >= QUEUE_LIMIT:
                result.set_exception(EngineUnavailable("the engine takes no more frames now", limit=QUEUE_LIMIT))
            else:
                self._sessions.setdefault(id(request.session), deque()).append(_Job(deadline, request, result, then))
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
        """Ends the threads, cancels the frames that wait or are under way, and closes the engine. Safe to call twice, and before
        `start`.

        Each step has a time limit and runs even if earlier steps failed: an engine whose device hangs, or whose `close` raises, is
        left behind with a line in the log. Cancelling waits for the steps.
        """
        with self._changed:
            self._closed = True
            waiting = self._pop_all()
            self._changed.notify()
        for job in waiting:
            job.result.cancel()
        if self._watch is not None:
            self._watch.cancel()
        steps = [
            Step(f"join-{thread.name}", functools.partial(in_thread, thread.join, "engine-join"), _JOIN_S)
            for thread in (self._launcher, self._collector)
            if thread.is_alive()
        ]
        steps.append(Step("frames", self._cancel_in_flight, _JOIN_S))
        steps.append(Step("close", lambda: in_thread(self.engine.close, f"engine-{self.engine.name}-close"), _CLOSE_S))
        await tear_down(f"engine {self.engine.name}", steps)

    async def _cancel_in_flight(self) -> None:
        with self._changed:
            left = [job for batch in self._in_flight for job in batch.jobs]
        for job in left:
            job.result.cancel()

    async def _look_for_stuck_batches(self) -> None:
        """Fails a batch that stays the oldest under way for too long. What counts is the time that this loop was running too: a
        process that was stopped, or a machine that slept, has lost no device."""
        every_s, waited_s = self._stuck_least_s / _CHECKS, 0.0
        watched: _Batch | None = None
        while self.failed is None:
            before = time.perf_counter()
            await asyncio.sleep(every_s)
            with self._changed:
                oldest, limit_s = self._in_flight[0] if self._in_flight else None, self._stuck_limit_s()
            waited_s = waited_s + min(time.perf_counter() - before, 2 * every_s) if oldest is watched else 0.0
            watched = oldest
            if oldest is not None and waited_s > limit_s:
                text = f"The device of the engine {self.engine.name!r} has not answered for {limit_s:g} s."
                self.fail(EngineFailed(text))

    def _stuck_limit_s(self) -> float:
        """Seconds that the oldest batch may still take, with the lock held."""
        expected = [self._measured.get(batch.size) for batch in self._in_flight]
        known = [seconds for seconds in expected if seconds is not None]
        if len(known) < len(expected):
            return self._stuck_after_s
        return min(self._stuck_after_s, max(self._stuck_least_s, STUCK_TIMES * max(known, default=0.0)))

    def _guarded(self, work: Callable[[], None]) -> None:
        """The body of both threads: an error that ends one of them fails the batcher."""
        try:
            work()
        except Exception as error:  # the thread's boundary: its death must fail the engine
            log.exception("a thread of the batcher broke", extra={"engine": self.engine.name})
            self.fail(EngineFailed(f"The engine {self.engine.name!r} broke: {type(error).__name__}: {error}"))

    # the launcher's thread

    def _launch_all(self) -> None:
        try:
            while (jobs := self._next_batch()) is not None:
                if not jobs:
                    continue
                batch = self._launch(jobs)
                if isinstance(batch.in_flight, CompletedBatch) and self._in_flight[0] is batch:
                    self._collect(batch)  # nothing is to be waited for: another thread would cost more than it does
                else:
                    self._launched.put(batch)
        finally:
            self._launched.put(None)

    def _next_batch(self) -> list[_Job] | None:
        """Blocks until the next batch is due and returns its jobs; None when the batcher has ended."""
        with self._changed:
            while not (self._closed or self.failed):
                seconds = self._seconds_until_launch()
                if seconds is not None and seconds <= 0:
                    break
                self._changed.wait(seconds)
            if self._closed or self.failed:
                return None
            jobs = self._pop_by_deadline(self.engine.batch_sizes[-1])
            if jobs:
                self._undelivered += 1
                self._sizes_on_device.append(self._size(len(jobs)))
            return jobs

    def _seconds_until_launch(self) -> float | None:
        """Seconds until the next batch should be launched; None while no batch may be launched."""
        if not self._waiting or len(self._sizes_on_device) >= MAX_ON_DEVICE or self._undelivered >= MAX_UNDELIVERED:
            return None
        if not self._sizes_on_device or self._waiting >= self.engine.batch_sizes[-1]:
            return 0.0
        return self._expected_end - LAUNCH_AHEAD_S - time.perf_counter()

    def _pop_by_deadline(self, most: int) -> list[_Job]:
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

    def _pop_all(self) -> list[_Job]:
        waiting = [job for jobs in self._sessions.values() for job in jobs]
        self._sessions.clear()
        self._waiting = 0
        return waiting

    def _launch(self, jobs: list[_Job]) -> _Batch:
        batch = _Batch(jobs, self._size(len(jobs)), time.perf_counter())
        with self._changed:
            self._expected_end = max(batch.begun, self._expected_end) + self._seconds.get(batch.size, 0.0)
            self._in_flight.append(batch)
        try:
            batch.in_flight = self.engine.launch([job.request for job in jobs])
        except Exception as error:  # noqa: BLE001 - the thread serves every session: a frame that breaks must not end it
            batch.error = error
        return batch

    def _size(self, count: int) -> int:
        """The batch size that the engine makes of `count` frames."""
        return next((size for size in self.engine.batch_sizes if size >= count), count)

    # the collector's thread; what an engine has completed in `launch` is collected on the launcher's

    def _collect_all(self) -> None:
        while (batch := self._launched.get()) is not None:
            self._collect(batch)

    def _collect(self, batch: _Batch) -> None:
        patches: Sequence[Patch | None] = ()
        try:
            try:
                if batch.in_flight is not None:
                    batch.in_flight.wait()
            finally:
                self._count(batch)
            if batch.in_flight is not None:
                patches = batch.in_flight.patches()
                if len(patches) != len(batch.jobs):
                    raise RuntimeError(f"{len(patches)} patches for {len(batch.jobs)} requests")
        except Exception as error:  # noqa: BLE001 - the thread serves every session: a batch that breaks must not end it
            batch.error = error
        with self._changed:
            self._undelivered -= 1
            self._in_flight.remove(batch)
            self._changed.notify()
        self._deliver(batch, patches)

    def _count(self, batch: _Batch) -> None:
        """Updates the statistics and the expected end of the batches on the device, after one has ended."""
        now = time.perf_counter()
        with self._changed:
            spent, queued = now - max(batch.begun, self._finished), batch.begun < self._finished
            self._finished = now
            self._seconds[batch.size] = spent
            self._busy_s += spent
            self._frames += len(batch.jobs)
            self._batches += 1
            self._sizes[len(batch.jobs)] = self._sizes.get(len(batch.jobs), 0) + 1
            self._sizes_on_device.popleft()
            self._expected_end = now + sum(self._seconds.get(size, 0.0) for size in self._sizes_on_device)
            self._changed.notify()
        self.engine.took(batch.size, spent, queued=queued)

    def _deliver(self, batch: _Batch, patches: Sequence[Patch | None]) -> None:
        assert self._loop is not None
        if batch.error is not None:
            self._broken += 1
            if self._broken % _BROKEN_LOGGED == 1:
                fields = {"engine": self.engine.name, "batch": len(batch.jobs), "so_far": self._broken}
                log.error("engine failed on a batch", exc_info=batch.error, extra=fields)
        if isinstance(batch.error, EngineFailed):
            self.fail(batch.error)
        if batch.error is None and isinstance(batch.in_flight, CompletedBatch) and len(batch.jobs) == 1:
            job = batch.jobs[0]
            if job.then is not None and not job.result.done() and not self._waiting:
                job.then(patches[0])
        with contextlib.suppress(RuntimeError):  # the loop is gone, and all that waited with it
            self._loop.call_soon_threadsafe(_settle, batch.jobs, patches, batch.error)

    def fail(self, error: EngineFailed) -> None:
        """Ends the batcher because its device failed, in a batch or outside it: fails the frames that wait or are under way and
        notifies the owner, once. Any thread may call it, after `start`."""
        assert self._loop is not None
        with self._changed:
            if self.failed is not None:
                return
            self.failed = error
            left = [job for batch in self._in_flight for job in batch.jobs] + self._pop_all()
            self._changed.notify()
            if self._closed:  # the owner is closing it already
                return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and everything on it is over
            self._loop.call_soon_threadsafe(_settle, left, (), error)
            if self._watch is not None:
                self._loop.call_soon_threadsafe(self._watch.cancel)
            if self._on_failure is not None:
                self._loop.call_soon_threadsafe(self._on_failure, error)


def _settle(jobs: Sequence[_Job], patches: Sequence[Patch | None], error: Exception | None) -> None:
    """On the event loop: hands results over. What was cancelled meanwhile is dropped here."""
    for index, job in enumerate(jobs):
        if job.result.done():
            continue
        if error is not None:
            job.result.set_exception(error)
            job.result.exception()  # logged once for all: a session that ends just now never asks, and asyncio would log each
        else:
            job.result.set_result(patches[index])
