"""The decoder processes of an agent: clips are read and decoded there, within limits, and never in the agent itself.

There are so many processes, with one clip each; other clips wait in order. A process stays for many clips, since starting one
takes most of a second. It is replaced when a clip broke a limit or was cancelled, and after `CLIPS_MAX` clips, so that nothing a
clip left behind stays for long.

Pixels do not cross: a process reads the source's file and writes the bundle's. What crosses are requests and answers of a line
each (see `decoder_main`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from musetalk_agent import errors
from musetalk_agent.agent_metrics import DECODERS_LOST, DECODERS_WAITING
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AgentError, AtCapacity, AvatarTooLarge, AvatarUndecodable

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, of how many); of how many is 0 where it is not known."""

_MODULE = "musetalk_agent.avatars.decoder_main"
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT")
_LOOK_S = 0.05
"""Seconds from one check for cancellation to the next."""
_LINE_BYTES_MAX = 64 << 10
_ANSWERS_SPARE = 1000
_TEXT_MAX = 1000
_EXIT_S = 5.0
_START_S = 60.0
"""Loading the libraries takes 0.7 s; a machine busy with everything else may take many times that."""
_LAST = frozenset({"done", "error", "os_error"})
"""Answers after which the process is ready for another request."""
_ERRORS = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AgentError)
}


class DecoderLost(Exception):
    """The process ended, was ended, or answers nonsense.

    Args:
        reason: `cpu`, `time`, `memory`, `crash` or `start`.
        begun: whether it had taken the request up.
    """

    def __init__(self, reason: str, *, begun: bool, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.begun = begun


class Aborted(Exception):
    """The caller does not wait for the answer any more."""


class DecoderProcess:
    """Starts the process and does not wait for it. Its methods block: call them in worker threads.

    `busy` is true while it is at a request, `served` counts requests.

    Args:
        models: folder of the models that it loads first; None for none.

    Raises:
        DecoderLost: it cannot be started.
    """

    def __init__(self, models: Path | None = None) -> None:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [sys.executable, "-P", "-m", _MODULE, str(os.getpid()), *([str(models)] if models else [])]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
        except OSError as error:
            raise DecoderLost("start", begun=False, detail=str(error.strerror)) from error
        self._buffer = bytearray()
        self.served = 0
        self.busy = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def call(
        self,
        request: dict[str, Any],
        limits: AvatarLimits,
        aborted: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> None:
        """Sends a request and waits for its end. After `DecoderLost` and `Aborted` the process is to be closed.

        Args:
            request: `do` names what, beside its arguments (see `decoder_main.Decoder`).
            limits: how long it may take once it has begun, in all and from one answer to the next.
            aborted: called several times a second; true ends the wait.
            progress: called in this thread.

        Raises:
            AgentError: what the clip was refused with.
            OSError: a file could not be read or written.
            DecoderLost: a limit was met, or the process broke.
            Aborted: `aborted` returned true.
        """
        self.served += 1
        self.busy, begun = True, False
        try:
            self._send(request)
            deadline = math.inf
            silence_s = _START_S
            for _ in range(2 * limits.frames + _ANSWERS_SPARE):
                answer = self._receive(min(deadline, time.monotonic() + silence_s), aborted)
                self.busy = not answer.keys() & _LAST
                if "done" in answer:
                    return
                if "begun" in answer and not begun:
                    begun, silence_s = True, limits.decoder_silence_seconds
                    deadline = time.monotonic() + limits.decoder_seconds
                _raise_reported(answer, begun)
                if progress is not None and "progress" in answer:
                    stage, done, total = answer["progress"]
                    progress(str(stage)[:32], int(done), int(total))
        except (ValueError, TypeError, KeyError, BrokenPipeError, TimeoutError, EOFError) as error:
            raise DecoderLost(self._why(error), begun=begun, detail=f"{type(error).__name__} {error}") from error
        raise DecoderLost("crash", begun=True, detail="too many answers")

    def close(self) -> None:
        """Ends the process and waits until it is gone, or for `_EXIT_S` where the kernel keeps it. Safe to call twice."""
        self._process.kill()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:  # in a call of the kernel that a broken disk does not end; it dies with that
            log.warning("a decoder process does not end", extra={"pid": self.pid})
        finally:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        pass  # what was not sent is not wanted any more

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _receive(self, deadline: float, aborted: Callable[[], bool]) -> dict[str, Any]:
        """The next answer. Raises TimeoutError, EOFError, ValueError, Aborted."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if end:
                self._buffer = rest
                answer = json.loads(line)
                if not isinstance(answer, dict):
                    raise ValueError("an answer is no object")
                if aborted():
                    raise Aborted
                return answer
            if len(self._buffer) > _LINE_BYTES_MAX:
                raise ValueError("an answer has no end")
            while not select.select([output], [], [], _LOOK_S)[0]:
                if aborted():
                    raise Aborted
                if time.monotonic() > deadline:
                    raise TimeoutError("no answer")
            piece = os.read(output, _LINE_BYTES_MAX)
            if not piece:
                raise EOFError("it ended")
            self._buffer += piece

    def _why(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return "time"
        if not isinstance(error, EOFError | BrokenPipeError):
            return "crash"
        try:
            code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return "crash"
        return "cpu" if code == -signal.SIGXCPU else "crash"


def _raise_reported(answer: dict[str, Any], begun: bool) -> None:
    """Raises the error that an answer reports. Its texts come from a process that a clip may have taken over: they are bounded."""
    if "error" in answer:
        fields: dict[str, Any] = dict(answer["error"])
        kind = _ERRORS[fields.pop("kind")]
        short: dict[str, Any] = {
            name: value[:_TEXT_MAX] if isinstance(value, str) else value for name, value in fields.items()
        }
        raise kind(str(short.pop("detail")), **short)
    if "os_error" in answer:
        number, text = answer["os_error"]
        raise OSError(str(text)[:_TEXT_MAX]) if number is None else OSError(int(number), str(text)[:_TEXT_MAX])
    if "memory" in answer:
        raise DecoderLost("memory", begun=begun)
    if "crash" in answer:
        raise DecoderLost("crash", begun=begun, detail=str(answer["crash"])[-_TEXT_MAX:])


T = TypeVar("T")

CLIPS_MAX = 64
"""Clips that one process sees in its life."""
WAITING_MAX = 32
"""Clips that wait; more are refused. With two processes and clips of two seconds, the last one waits half a minute."""
_RETRY_AFTER_S = 5
_BUILDERS = 2
_CHECKERS = 1


class DecoderCall(Protocol):
    """Sends a request to the process and waits for its end; raises as `DecoderPool.run` does."""

    def __call__(self, request: dict[str, Any], progress: Progress | None = None) -> None: ...


class DecoderPool:
    """A pool of processes. Threads and processes are started when they are first needed.

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

    async def run(self, work: Callable[[DecoderCall], T], limits: AvatarLimits) -> T:
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

    def _turn(self, work: Callable[[DecoderCall], T], limits: AvatarLimits, aborted: threading.Event) -> T:
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


class DecoderPools:
    """The pools of an agent: `builders` prepare clips, `checkers` check uploads, which therefore never wait for a clip.

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
