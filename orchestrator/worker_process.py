"""Worker processes behind a pipe, seen from the service: started with a bare environment, kept running, ended in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel

from orchestrator import worker_pipe
from orchestrator.metrics import Metrics
from orchestrator.supervision import supervise

NICE = 5
"""A process that paces sound gets three times the CPU time of one that makes speech or text ahead of it (sched(7))."""
_STDERR_BYTES = 2000
STDERR_MOST = 64 << 10
"""Bytes that one worker may write into our log. The rest is read and dropped, so that the worker never waits for us."""
_DOUBLINGS = 10
"""Enough to reach the longest back-off; 2 ** 1024 is no float."""
log = logging.getLogger(__name__)
_Report = TypeVar("_Report")


class WorkerLost(Exception):
    """The worker ended, hangs, or sends what is no message; the message says which."""


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """How a worker is treated.

    Attributes:
        backoff_s: the first and the longest wait before a lost worker is started again; it doubles at each loss in a row.
        settled_s: a worker that lived this long was no loss in a row.
        exit_s: a worker leaves when its input closes; after this it is killed.
        unsent_bytes: a worker that leaves this much unread hangs, and is sent nothing.
    """

    backoff_s: tuple[float, float] = (0.1, 5.0)
    settled_s: float = 10.0
    exit_s: float = 5.0
    unsent_bytes: int = 1 << 20


def bare_environment(threads: int = 1, path: tuple[str, ...] | None = None) -> dict[str, str]:
    """What a worker's environment has: native code that reads text of strangers must not see our keys.

    `threads` limits OpenMP, `path` are the folders that Python imports from; by default this process's.
    """
    folders = path if path is not None else tuple(folder for folder in sys.path if folder)
    return {"PYTHONPATH": os.pathsep.join(folders), "PYTHONUTF8": "1", "OMP_NUM_THREADS": str(threads)}


class WorkerLink:
    """One running worker process. `WorkerProcess` makes it, and ends it."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, unsent_bytes: int) -> None:
        self._process, self._unsent_bytes = process, unsent_bytes
        self._asked = 0
        self.ready = self.settled = False
        self.log = asyncio.create_task(log_errors(process, f"{name} stderr"), name=f"{name}-stderr")

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: BaseModel, payload: bytes = b"") -> bool:
        """Hands the worker a message; False before it has reported anything, and while it leaves too much unread."""
        stdin = self._process.stdin
        if stdin is None or not self.ready or stdin.transport.get_write_buffer_size() > self._unsent_bytes:
            return False
        stdin.write(worker_pipe.encode(message.model_dump(mode="json"), payload))
        return True

    async def receive(self, within_s: float | None = None) -> tuple[bytes, bytes]:
        """The worker's next message: its header, not yet read as JSON, and its payload.

        Raises:
            WorkerLost: none came `within_s` seconds, or not one.
        """
        stdout = self._process.stdout
        assert stdout is not None
        try:
            async with asyncio.timeout(within_s):
                head, payload = worker_pipe.lengths(await stdout.readexactly(worker_pipe.LENGTHS.size))
                message = await stdout.readexactly(head), await stdout.readexactly(payload)
        except TimeoutError as error:
            raise WorkerLost(f"no sign of life for {within_s:g} s") from error
        except asyncio.IncompleteReadError as error:
            raise WorkerLost("the process ended") from error
        except (ConnectionError, worker_pipe.FramingError) as error:
            raise WorkerLost(f"it sent what is no message: {type(error).__name__}") from error
        self.ready = True
        return message

    async def listen(
        self, validate: Callable[[bytes], _Report], take: Callable[[_Report], object], hello_s: float, silence_s: float
    ) -> NoReturn:
        """Takes the worker's reports until it is lost; their payloads are dropped.

        Args:
            validate: makes a report of a header; raises ValueError for an invalid one.
            take: is called with each.
            hello_s, silence_s: longest wait for the first report, and for each after it.

        Raises:
            WorkerLost: always.
        """
        within_s = hello_s
        while True:
            head, _ = await self.receive(within_s)
            try:
                report = validate(head)
            except ValueError as error:
                raise WorkerLost("it sent what is no report") from error
            take(report)
            within_s = silence_s

    async def exchange(self, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Sends a request, numbered by its `id`, and waits for its answer. Cancelled in between, the link is of no more use.

        Raises:
            WorkerLost: the process ended or answered something else.
        """
        assert self._process.stdin is not None
        self._asked += 1
        try:
            self._process.stdin.write(worker_pipe.encode({**header, "id": self._asked}))
            await self._process.stdin.drain()
            head, payload = await self.receive()
            answer = worker_pipe.decode_header(head)
        except (ConnectionError, worker_pipe.FramingError) as error:
            raise WorkerLost(f"the exchange failed: {error}") from error
        if answer.get("id") != self._asked:  # one message too many, and every request would get the answer of another
            raise WorkerLost("it answered something that was not asked")
        return answer, payload

    async def wait(self) -> None:
        """Waits for the end of the process."""
        await self._process.wait()

    async def aclose(self, within_s: float) -> None:
        """Closes the worker's input, waits for its end, kills it if need be."""
        try:
            await end(self._process, within_s)
        finally:
            self.log.cancel()
            await asyncio.wait([self.log])


class WorkerProcess:
    """Keeps one worker running for one event loop, from `open` to `aclose`.

    Args:
        name: in the log, and of the loop in `avatar_loop_failures_total`.
        command: starts it.
        serve: holds one process: is called with each that was started, and raises WorkerLost when it is of no more use.
            When it returns, no other process is started.
        lost: is called with the reason when a process was lost or cannot be started.
        environment: see `bare_environment`.
        nice: by how much its niceness is above ours; `NICE` for what computes while others pace sound.
    """

    def __init__(
        self,
        name: str,
        command: tuple[str, ...],
        serve: Callable[[WorkerLink], Awaitable[object]],
        *,
        times: WorkerTimes,
        environment: Mapping[str, str],
        lost: Callable[[str], object] | None = None,
        metrics: Metrics | None = None,
        nice: int = 0,
    ) -> None:
        self.name, self.command, self.times, self.nice = name, command, times, nice
        self._serve, self._lost = serve, lost
        self._environment, self._metrics = environment, metrics
        self._link: WorkerLink | None = None
        self._task: asyncio.Task[None] | None = None
        self._losses = 0

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._link.pid if self._link is not None else None

    @property
    def running(self) -> bool:
        """Whether a worker is kept running."""
        return self._task is not None and not self._task.done()

    def open(self) -> bool:
        """Starts the worker in the background; False where it was open already."""
        if self._task is not None:
            return False
        name = self.name.replace(" ", "-")
        self._task = asyncio.create_task(supervise(name, self._run, self._metrics), name=name)
        return True

    async def aclose(self) -> None:
        """Ends the worker, in little more than `times.exit_s`. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def send(self, message: BaseModel, payload: bytes = b"") -> bool:
        """See `WorkerLink.send`; False while there is no worker."""
        return self._link is not None and self._link.send(message, payload)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            begun = clock()
            try:
                await self._one_process()
                return
            except WorkerLost as error:
                self._losses = 1 if clock() - begun > self.times.settled_s else self._losses + 1
                log.warning(
                    "a worker was lost",
                    extra={"worker": self.name, "reason": str(error), "losses_in_a_row": self._losses},
                )
                if self._lost is not None:
                    self._lost(str(error))
            await asyncio.sleep(backoff_s(self._losses, self.times.backoff_s))

    async def _one_process(self) -> None:
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command, stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment
            )
        except OSError as error:
            raise WorkerLost(f"it cannot be started: {error.strerror}") from error
        if self.nice:
            with contextlib.suppress(ProcessLookupError):  # it has ended already; threads it makes later inherit it
                os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + self.nice)
        link = self._link = WorkerLink(process, self.name, self.times.unsent_bytes)
        try:
            await self._serve(link)
        finally:
            self._link = None
            if link.settled:
                self._losses = 0
            await link.aclose(self.times.exit_s)


def backoff_s(losses: int, limits: tuple[float, float]) -> float:
    """Seconds to wait after so many losses in a row, at least one; `limits` are the first wait and the longest."""
    return min(limits[1], limits[0] * 2.0 ** min(losses - 1, _DOUBLINGS))


async def end(process: asyncio.subprocess.Process, within_s: float) -> None:
    """Closes the worker's input and waits for its end; kills it after `within_s` seconds, and at once when cancelled.

    What it still writes is read: asyncio's `wait` returns only when the output was read to its end, so a worker that floods would
    be waited for without end. No other task may read the output meanwhile.
    """
    assert process.stdin is not None
    process.stdin.close()
    emptying = asyncio.create_task(_empty(process), name="worker-rest")
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await process.wait()
    finally:
        kill(process)
        try:
            await process.wait()
        finally:
            emptying.cancel()
            await asyncio.wait([emptying])


def kill(process: asyncio.subprocess.Process) -> None:
    """Kills a process that has not ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def log_errors(process: asyncio.subprocess.Process, message: str) -> None:
    """Logs what the worker writes to its standard error, up to `STDERR_MOST`, until it ends."""
    assert process.stderr is not None
    written = 0
    while block := await process.stderr.read(_STDERR_BYTES):
        written += len(block)
        if written <= STDERR_MOST:
            text = block.decode(errors="replace").strip()
            log.warning(message, extra={"worker_pid": process.pid, "text": text})


async def _empty(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        while await process.stdout.read(1 << 16):
            pass
