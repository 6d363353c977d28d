"""Runs the speech worker: a process of its own behind a pipe, which synthesizes one part of text at a time.

The voices are GPL and run native code on text of strangers. The orchestrator therefore imports none of them, and restarts the
process when it dies or hangs. Waiting parts are made in the order in which their audio is due, so a new utterance does not wait for
the look-ahead of others, and several utterances take turns.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from dataclasses import dataclass, field
from typing import Any

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator import worker_pipe
from orchestrator.supervision import supervise
from orchestrator.tts.synthesizer import VoiceInfo
from orchestrator.worker_pipe import end, log_errors

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 60.0
"""Loading and warming up takes 2 s; a machine busy with everything else that starts may take many times that."""
EXIT_TIMEOUT_S = 1.0
"""The worker leaves as soon as its input closes; after this it is killed."""


class WorkerLostError(Exception):
    """The worker ended, hangs or talks nonsense; the message says which."""


class WorkerLink:
    """One running worker process; `start` makes it, `aclose` ends it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asked = 0
        self._log = asyncio.create_task(log_errors(process, log, "speech worker stderr"), name="speech-worker-stderr")

    @classmethod
    async def start(cls, command: tuple[str, ...]) -> WorkerLink:
        """Starts `command`.

        Raises:
            WorkerLostError: it cannot be started.
        """
        try:
            process = await worker_pipe.spawn(command, threads=2)
        except OSError as error:
            raise WorkerLostError(f"it cannot be started: {error.strerror}") from error
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def hello(self) -> dict[str, Any]:
        """The worker's first message: `voices` and `missing`.

        Raises:
            WorkerLostError: it does not come, or is not one.
        """
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                header, _ = await self._receive()
        except TimeoutError as error:
            raise WorkerLostError("it did not become ready in time") from error
        if not isinstance(header.get("voices"), list):
            raise WorkerLostError("its first message was not a hello")
        return header

    async def exchange(self, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Sends a request, numbered by its `id`, and waits for its answer. Cancelled in between, the link is of no more use.

        Raises:
            WorkerLostError: the process ended or answered nonsense, such as an answer to something else.
        """
        assert self._process.stdin is not None
        self._asked += 1
        try:
            self._process.stdin.write(worker_pipe.encode({**header, "id": self._asked}))
            await self._process.stdin.drain()
        except (ConnectionError, worker_pipe.FramingError) as error:
            raise WorkerLostError("the request could not be sent") from error
        answer, payload = await self._receive()
        if answer.get("id") != self._asked:  # one message too many, and every text would get the sound of another
            raise WorkerLostError("it answered something that was not asked")
        return answer, payload

    async def wait(self) -> None:
        """Waits for the end of the process."""
        await self._process.wait()

    async def aclose(self) -> None:
        """Closes the worker's input, waits for its end, kills it if need be."""
        try:
            await end(self._process, EXIT_TIMEOUT_S)
        finally:
            self._log.cancel()
            await asyncio.wait([self._log])

    async def _receive(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        try:
            head, payload = worker_pipe.lengths(await self._process.stdout.readexactly(worker_pipe.LENGTHS.size))
            header = worker_pipe.decode_header(await self._process.stdout.readexactly(head))
            return header, await self._process.stdout.readexactly(payload)
        except asyncio.IncompleteReadError as error:
            raise WorkerLostError("the process ended") from error
        except (ConnectionError, worker_pipe.FramingError) as error:
            raise WorkerLostError(f"it sent nonsense: {error}") from error


PARTS_MAX = 64
"""Parts waiting at once, over all utterances; past it a new utterance is refused. At 0.1 s each, 6 s."""
PART_TIMEOUT_S = 15.0
"""A part that takes longer hangs: the longest takes 0.3 s, on a machine fifty times too busy 15 s."""
_RATES = range(8000, 48_001)
BACKOFF_S = (0.1, 5.0)
"""First and longest wait before a lost worker is started again; it doubles until a part succeeds."""
_DOUBLINGS = 10
"""Enough to reach the longest wait; 2 ** 1024 is no float."""


@dataclass(frozen=True, slots=True)
class SpokenPart:
    """A synthesised part: int16 mono PCM, its phonemes and words `(text, start, end)` in samples from the part's first."""

    pcm: bytes
    sample_rate: int
    cues: tuple[tuple[str, int, int], ...]
    words: tuple[tuple[str, int, int], ...] = ()


@dataclass(eq=False, slots=True)
class _Job:
    voice: str
    text: str
    result: asyncio.Future[SpokenPart]


@dataclass(slots=True)
class WorkerStatistics:
    """Counters since the start; `waiting` is the length of the queues now."""

    starts: int = 0
    parts: int = 0
    failures: int = 0
    waiting: int = 0


@dataclass(eq=False)
class SpeechWorker:
    """Keeps one worker process running and hands parts to it, one at a time. For one event loop."""

    command: tuple[str, ...]
    part_timeout_s: float = PART_TIMEOUT_S
    statistics: WorkerStatistics = field(default_factory=WorkerStatistics)
    voices: tuple[VoiceInfo, ...] = ()
    _queue: list[tuple[float, int, _Job]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None
    _link: WorkerLink | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._link.pid if self._link is not None else None

    async def open(self) -> None:
        """Starts the worker; returns when it is warm or its first start has failed (then it is tried again meanwhile)."""
        if self._task is None:
            self._settled.clear()
            self._task = asyncio.create_task(supervise("speech-worker", self._run, None), name="speech-worker")
        await self._settled.wait()

    async def aclose(self) -> None:
        """Ends the process (within three seconds) and fails what waits."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._settled.set()  # a task that is cancelled before it runs sets nothing
        self._fail_waiting("The speech service is shutting down.")

    def submit(self, voice: str, text: str, *, due: float | None = None) -> asyncio.Future[SpokenPart]:
        """Queues one part. Cancelling the future takes it out of the queue, or drops the result if it is being made.

        Args:
            voice: one of `voices` by name.
            text: a part as `text.parts` makes them.
            due: when its sound is needed, in the event loop's time; None for the first part of an utterance: now.

        Raises:
            ProblemError: `tts_failed` when an utterance begins while too many parts wait, or the worker is closed. The future
                ends with the same code when the worker breaks over this part or cannot be started.
        """
        if self._task is None or self._task.done():
            raise _failed("The speech service is not running.")
        loop = asyncio.get_running_loop()
        # Later parts are few per utterance and were let in with their first: failing them would break speech off.
        if due is None and sum(not job.result.done() for _, _, job in self._queue) >= PARTS_MAX:
            raise _failed(
                f"The speech service is busy: {PARTS_MAX} parts are waiting. Try again in a second.", retry_after_s=1
            )
        job = _Job(voice, text, loop.create_future())
        heapq.heappush(self._queue, (loop.time() if due is None else due, next(self._order), job))
        self.statistics.waiting = len(self._queue)
        self._wake.set()
        return job.result

    async def _run(self) -> None:
        losses = 0
        while True:
            made, greeted = self.statistics.parts, False
            try:
                self._link = await WorkerLink.start(self.command)
                self.statistics.starts += 1
                try:
                    if not await self._greet(self._link):
                        return
                    greeted = True
                    await self._serve(self._link)
                finally:
                    link, self._link = self._link, None
                    await link.aclose()
            except WorkerLostError as error:
                losses = 1 if self.statistics.parts > made else losses + 1
                self.statistics.failures += 1
                log.warning("speech worker lost", extra={"reason": str(error), "losses_in_a_row": losses})
                if not greeted:
                    self._fail_waiting("The speech worker does not start.")
            finally:
                self._settled.set()
            await asyncio.sleep(backoff_s(losses))

    async def _greet(self, link: WorkerLink) -> bool:
        hello = await link.hello()
        try:
            self.voices = tuple(
                VoiceInfo(str(v["name"]), str(v["language"]), str(v["provider"]), _rate(v["sample_rate"]))
                for v in hello["voices"]
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WorkerLostError("its hello was malformed") from error
        log.info("speech worker ready", extra={"voices": len(self.voices), "missing": hello.get("missing", [])})
        self._settled.set()
        return bool(self.voices)

    async def _serve(self, link: WorkerLink) -> None:
        """Gives the worker one part after the other. Raises WorkerLostError when it has ended."""
        gone = asyncio.create_task(link.wait(), name="speech-worker-exit")
        try:
            while True:
                while self._queue:
                    _, _, job = heapq.heappop(self._queue)
                    self.statistics.waiting = len(self._queue)
                    if not job.result.done():
                        await self._synthesise(link, job)
                self._wake.clear()
                wake = asyncio.create_task(self._wake.wait())
                try:
                    await asyncio.wait({wake, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    wake.cancel()
                if gone.done():
                    raise WorkerLostError("the process ended")
        finally:
            gone.cancel()
            await asyncio.wait([gone])

    async def _synthesise(self, link: WorkerLink, job: _Job) -> None:
        failure: str | None = "The speech service broke over this text."  # `supervise` logs the error
        try:
            async with asyncio.timeout(self.part_timeout_s):
                header, pcm = await link.exchange({"voice": job.voice, "text": job.text})
            part = _part(header, pcm)
            failure = f"The voice {job.voice} could not speak this text." if part is None else None
        except TimeoutError as error:
            failure = f"The speech worker gave no answer within {self.part_timeout_s:g} s and was restarted."
            raise WorkerLostError("a part took too long") from error
        except WorkerLostError:
            failure = "The speech worker ended while it spoke this text; it is being restarted."
            raise
        except asyncio.CancelledError:
            failure = "The speech service is shutting down."
            raise
        finally:
            if failure is not None:
                _settle(job, _failed(failure))
        if part is None:
            self.statistics.failures += 1
            return
        self.statistics.parts += 1
        if not job.result.done():
            job.result.set_result(part)

    def _fail_waiting(self, reason: str) -> None:
        for _, _, job in self._queue:
            _settle(job, _failed(reason))
        self._queue.clear()
        self.statistics.waiting = 0


def backoff_s(losses: int) -> float:
    """Seconds to wait after so many losses in a row, at least one."""
    return min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(losses - 1, _DOUBLINGS))


def _part(header: dict[str, Any], pcm: bytes) -> SpokenPart | None:
    """The answer's part, None when the voice failed on it.

    Raises:
        WorkerLostError: the answer is not one: the worker cannot be trusted any more.
    """
    if "error" in header:
        log.warning("speech worker refused a part", extra={"reason": str(header["error"])})
        return None
    try:
        cues, words = (
            tuple((str(text), int(start), int(end)) for text, start, end in header.get(kind, ()))
            for kind in ("cues", "words")
        )
        if len(pcm) % 2:
            raise ValueError("half a sample")
        samples = len(pcm) // 2
        if any(not 0 <= start <= end <= samples for _, start, end in (*cues, *words)):
            raise ValueError("a time outside of the sound")
        return SpokenPart(pcm, _rate(header["sample_rate"]), cues, words)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorkerLostError("the answer was malformed") from error


def _rate(value: object) -> int:
    """Samples per second. Raises ValueError for what is none."""
    if not isinstance(value, int) or value not in _RATES:
        raise ValueError("no rate of samples")
    return value


def _settle(job: _Job, error: ProblemError) -> None:
    if not job.result.done():
        job.result.set_exception(error)
        # The utterance may be closed before it looks: its look-ahead's failure is not reported then.
        job.result.exception()


def _failed(detail: str, retry_after_s: int | None = None) -> ProblemError:
    return ProblemError(ErrorCode.TTS_FAILED, detail, retry_after_s=retry_after_s)
