"""The decoder processes of an agent: so many, one clip each, the others wait in order.

A process stays for many clips, since starting one takes most of a second. It is replaced when a clip broke a limit or was called
off, and after `CLIPS_MAX` clips, so that nothing a clip left behind stays for long.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from musetalk_agent.avatars.decoder_process import Aborted, DecoderLost, DecoderProcess, Progress
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AgentError, AtCapacity, AvatarTooLarge, AvatarUndecodable
from musetalk_agent.metrics import DECODERS_LOST, DECODERS_WAITING

log = logging.getLogger(__name__)

T = TypeVar("T")

CLIPS_MAX = 64
"""Clips that one process sees in its life."""
WAITING_MAX = 32
"""Clips that wait; more are refused. With two processes and clips of two seconds, the last one waits half a minute."""
_RETRY_AFTER_S = 5
_BUILDERS = 2
_CHECKERS = 1


class Call(Protocol):
    """Has the process answer a request; raises as `DecoderPool.run` does."""

    def __call__(self, request: dict[str, Any], progress: Progress | None = None) -> None: ...


class DecoderPool:
    """Makes threads and processes when they are needed first.

    Args:
        size: processes, and so clips at a time.
        models: folder of the models that a process loads as it starts; None for none.
    """

    def __init__(self, size: int, models: Path | None) -> None:
        self._size = size
        self._models = models
        # The kernel ends a process with the thread that started it (PR_SET_PDEATHSIG); these live as long as the pool.
        self._threads = ThreadPoolExecutor(size, "avatar-decode")
        self._lock = threading.Lock()
        self._idle: list[DecoderProcess] = []
        self._alive = 0
        self._waiting = 0
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of those that wait for a clip."""
        with self._lock:
            return [process.pid for process in self._idle]

    def warm(self) -> None:
        """Starts the processes that are missing, in the background."""
        with suppress(RuntimeError):  # the pool is closed
            for _ in range(self._size - self._alive):
                self._threads.submit(self._refill)

    async def run(self, work: Callable[[Call], T], limits: AvatarLimits) -> T:
        """Runs `work` in a worker thread that has a process for itself, when its turn comes.

        Cancelling takes it out of the queue, or ends the process and returns when that is gone, after a tenth of a second.

        Raises:
            AgentError: what the clip was refused with. `AvatarTooLarge` or `AvatarUndecodable` when it broke a limit or the
                process, `AtCapacity` when too many wait or no process can be started.
            OSError: a file could not be read or written.
            CancelledError: the pool was closed, too.
        """
        if self._waiting >= WAITING_MAX:
            raise AtCapacity(
                f"{self._waiting} avatars wait to be prepared, as many as may; try again in {_RETRY_AFTER_S} s.",
                limit=WAITING_MAX,
                retry_after_s=_RETRY_AFTER_S,
            )
        aborted = threading.Event()

        def turn() -> T:
            self._count(-1)
            return self._turn(work, limits, aborted)

        self._count(+1)
        try:
            future: Future[T] = self._threads.submit(turn)
        except RuntimeError:
            self._count(-1)
            raise asyncio.CancelledError from None
        future.add_done_callback(lambda ended: self._count(-1) if ended.cancelled() else None)
        waiter = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(waiter)
        except Aborted:
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            aborted.set()
            future.cancel()
            while not waiter.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([waiter])
            if not waiter.cancelled():
                waiter.exception()  # retrieved: nothing waits for it any more
            raise

    def close(self) -> None:
        """Ends every process, those at work within a tenth of a second; who waits is cancelled. Safe to call twice."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in idle:
            self._end(process)

    def _count(self, change: int) -> None:
        with self._lock:
            self._waiting += change
        DECODERS_WAITING.inc(change)

    def _turn(self, work: Callable[[Call], T], limits: AvatarLimits, aborted: threading.Event) -> T:
        process: DecoderProcess | None = None

        def call(request: dict[str, Any], progress: Progress | None = None) -> None:
            nonlocal process
            for attempt in range(self._size + 1):  # every one that waited may have died meanwhile
                try:
                    process = process or self._take()
                    process.call(request, limits, lambda: self._closed or aborted.is_set(), progress)
                    return
                except DecoderLost as lost:
                    if process is not None:
                        self._end(process)
                    process = None
                    if lost.begun or attempt == self._size:
                        raise _refusal(lost, limits) from lost

        try:
            return work(call)
        finally:
            if process is not None:
                self._give_back(process)

    def _take(self) -> DecoderProcess:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            self._alive += 1
        try:
            return DecoderProcess(self._models)
        except DecoderLost:
            with self._lock:
                self._alive -= 1
            raise

    def _give_back(self, process: DecoderProcess) -> None:
        with self._lock:
            fit = not (self._closed or process.busy) and process.served < CLIPS_MAX
            if fit:
                self._idle.append(process)
        if not fit:
            self._end(process)

    def _end(self, process: DecoderProcess) -> None:
        """Ends a process and starts another in its place, so that the next clip finds it warm."""
        process.close()
        with self._lock:
            self._alive -= 1
        with suppress(RuntimeError):  # the pool is closed
            self._threads.submit(self._refill)

    def _refill(self) -> None:
        with self._lock:
            if self._closed or self._alive >= self._size:
                return
            self._alive += 1
        try:
            process = DecoderProcess(self._models)
        except DecoderLost as lost:
            with self._lock:
                self._alive -= 1
            log.warning("decoder process not started", extra={"reason": str(lost)})
            return
        self._give_back(process)


class Decoders:
    """The pools of an agent: `builders` prepare clips, `checkers` look at uploads, which so never wait for a clip.

    Args:
        models: folder of the face models.
    """

    def __init__(self, models: Path) -> None:
        self.builders = DecoderPool(_BUILDERS, models)
        self.checkers = DecoderPool(_CHECKERS, None)

    def close(self) -> None:
        """Closes both. Safe to call twice."""
        self.builders.close()
        self.checkers.close()


def _refusal(lost: DecoderLost, limits: AvatarLimits) -> AgentError:
    """The error of a clip that was lost with its process."""
    DECODERS_LOST.labels(lost.reason).inc()
    log.warning("decoder process lost", extra={"reason": lost.reason, "detail": str(lost), "clip_seen": lost.begun})
    if not lost.begun:
        return AtCapacity(
            "The agent cannot start a process to decode avatars in; see its log.", retry_after_s=_RETRY_AFTER_S
        )
    if lost.reason == "cpu":
        seconds: float = limits.decoder_step_cpu_seconds
        return AvatarTooLarge(
            f"One frame of the clip took more than {seconds:g} s to decode; save it again with a common program, or smaller.",
            limit=seconds,
        )
    if lost.reason == "time":
        return AvatarTooLarge(
            f"The clip could not be prepared in {limits.decoder_seconds:g} s; make it shorter or smaller.",
            limit=limits.decoder_seconds,
        )
    if lost.reason == "memory":
        return AvatarTooLarge(
            "The clip needs far more memory to decode than its size lets expect; save it again with a common program, or smaller."
        )
    return AvatarUndecodable("The clip made its decoder fail, and was refused; save it again with a common program.")
