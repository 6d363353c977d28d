"""The voice worker seen from the core: one process of its own behind a pipe, kept running; lines join again after it was lost."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from orchestrator import worker_pipe
from orchestrator.metrics import Metrics
from orchestrator.supervision import supervise
from orchestrator.voice.voice_line import VoiceLine
from orchestrator.voice.worker_messages import HandoffDone, LineReport, worker_reports
from orchestrator.worker_pipe import end, log_errors

COMMAND = (sys.executable, "-m", "orchestrator.voice.worker")
LINES_MAX = 32
"""Lines at once. Each costs the worker 3 % of a core while it is on the air."""
BACKOFF_S = (0.05, 5.0)
"""First and longest wait before a lost worker is started again; it doubles until one has lived for a while."""
_SETTLED_S = 10.0
_HELLO_TIMEOUT_S = 30.0
SILENCE_S = 5.0
"""The worker gives a sign of life every second; after this long without one it hangs and is killed."""
_EXIT_TIMEOUT_S = 5.0
_UNSENT_BYTES = 16 << 20
"""A worker that leaves this much unread hangs; lines send two seconds ahead, so it is never reached by one that does not."""
log = logging.getLogger(__name__)


class VoiceBusyError(Exception):
    """All lines are taken."""


class _WorkerLostError(Exception):
    """The worker ended, hangs or talks nonsense; the message says which."""


@dataclass
class VoiceStatistics:
    """Counters since the start."""

    starts: int = 0
    losses: int = 0


class VoiceWorker:
    """Runs the worker for the lines of one event loop. `open()` starts it at once; otherwise the first line does."""

    def __init__(self, metrics: Metrics, command: tuple[str, ...] = COMMAND) -> None:
        self.statistics = VoiceStatistics()
        self._metrics = metrics
        self._command = command
        self._lines: dict[str, VoiceLine] = {}
        self._numbers = 0
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._process.pid if self._process is not None else None

    @property
    def lines(self) -> list[VoiceLine]:
        """Those that have not left."""
        return list(self._lines.values())

    def open(self) -> None:
        """Starts the worker in the background: it takes half a second until it is warm."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(supervise("voice-worker", self._run, self._metrics), name="voice-worker")

    async def wait_ready(self) -> None:
        """Returns once the worker is warm. Cancelling is harmless."""
        await self._ready.wait()

    async def aclose(self) -> None:
        """Lines leave, the process ends, within six seconds. Afterwards lines say nothing any more."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def line(
        self, url: str, token: Callable[[], str], on_report: Callable[[LineReport], None] | None = None
    ) -> VoiceLine:
        """A new line; it does nothing until it joins.

        Args:
            url: LiveKit's address.
            token: mints a join token; called for every join.
            on_report: called on the event loop with each of its reports; must not block.

        Raises:
            VoiceBusyError: there are `LINES_MAX` already.
        """
        if len(self._lines) >= LINES_MAX:
            raise VoiceBusyError(f"all {LINES_MAX} voice lines are taken")
        self._numbers += 1
        name = f"line-{self._numbers}"
        line = VoiceLine(name, url, token, self._send, on_report, self._drop)
        self._lines[name] = line
        self._metrics.voice_lines.set(len(self._lines))
        self.open()
        return line

    def _drop(self, line: VoiceLine) -> None:
        self._lines.pop(line.name, None)
        self._metrics.voice_lines.set(len(self._lines))

    def _send(self, message: BaseModel, payload: bytes = b"") -> bool:
        process = self._process
        if process is None or process.stdin is None or not self._ready.is_set():
            return False
        if process.stdin.transport.get_write_buffer_size() > _UNSENT_BYTES:
            return False
        process.stdin.write(worker_pipe.encode(message.model_dump(mode="json"), payload))
        return True

    async def _run(self) -> None:
        delay, loop = BACKOFF_S[0], asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                await self._one_process()
            except _WorkerLostError as error:
                self.statistics.losses += 1
                self._metrics.voice_losses.inc()
                log.warning("voice worker lost", extra={"reason": str(error), "losses": self.statistics.losses})
            if loop.time() - begun > _SETTLED_S:
                delay = BACKOFF_S[0]
            await asyncio.sleep(delay)
            delay = min(BACKOFF_S[1], 2 * delay)

    async def _one_process(self) -> None:
        """Starts a worker and listens to it until it is lost. Raises _WorkerLostError."""
        try:
            process = await worker_pipe.spawn(self._command, threads=1)  # its tokens come with its commands
        except OSError as error:
            raise _WorkerLostError(f"it cannot be started: {error.strerror}") from error
        self._process = process
        errors = asyncio.create_task(log_errors(process, log, "voice worker stderr"), name="voice-worker-stderr")
        try:
            await self._listen(process)
        finally:
            self._ready.clear()
            self._process = None
            for line in self.lines:
                line.worker_lost()
            await end(process, _EXIT_TIMEOUT_S)
            errors.cancel()
            await asyncio.wait([errors])

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        patience = _HELLO_TIMEOUT_S
        while True:
            try:
                async with asyncio.timeout(patience):
                    head, payload = worker_pipe.lengths(await process.stdout.readexactly(worker_pipe.LENGTHS.size))
                    message = worker_reports.validate_json(await process.stdout.readexactly(head))
                    await process.stdout.readexactly(payload)
            except TimeoutError as error:
                raise _WorkerLostError(f"no sign of life for {patience:g} s") from error
            except asyncio.IncompleteReadError as error:
                raise _WorkerLostError("the process ended") from error
            except (ConnectionError, worker_pipe.FramingError, ValidationError) as error:
                raise _WorkerLostError(f"it sent nonsense: {type(error).__name__}") from error
            patience = SILENCE_S
            if isinstance(message, LineReport | HandoffDone):
                line = self._lines.get(message.line)
                if line is not None:
                    line.take(message)
            elif not self._ready.is_set():
                self.statistics.starts += 1
                self._ready.set()
                for line in self.lines:
                    line.worker_ready()
