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
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator import worker_pipe
from orchestrator.tts.lexicon import Said
from orchestrator.tts.synthesizer import VoiceInfo
from orchestrator.worker_process import NICE, WorkerLink, WorkerLost, WorkerProcess, WorkerTimes, bare_environment

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 60.0
"""Loading and warming up takes 2 s; a machine busy with everything else that starts may take many times that."""
TIMES = WorkerTimes(backoff_s=(0.1, 5.0), settled_s=math.inf, exit_s=1.0)
"""The worker leaves as soon as its input closes. The back-off doubles until a part succeeds."""
PARTS_MAX = 64
"""Parts waiting at once, over all utterances; past it a new utterance is refused. At 0.1 s each, 6 s."""
PART_TIMEOUT_S = 15.0
"""A part that takes longer hangs: the longest takes 0.3 s, on a machine fifty times too busy 15 s."""
LOADS = 4
"""A part that loads its voice may take so many times as long: 2 s on an idle machine."""
_BROKEN = "BrokenVoiceError: "
_LAZY = frozenset({"kokoro"})
"""Providers whose voices are loaded when they first speak."""
_RATES = range(8000, 48_001)


@dataclass(frozen=True, slots=True)
class SpokenPart:
    """A synthesised part: int16 mono PCM, its phonemes and words `(text, start, end)` in samples from the part's first."""

    pcm: bytes
    sample_rate: int
    cues: tuple[tuple[str, int, int], ...]
    words: tuple[tuple[str, int, int], ...] = ()


@dataclass(eq=False, slots=True)
class _SpeechJob:
    voice: str
    text: str
    speed: float
    said: tuple[Said, ...]
    result: asyncio.Future[Any]
    """A `SpokenPart`, or the ranking of `languages` where they are given."""
    languages: list[str] | None = None


@dataclass(slots=True)
class WorkerStatistics:
    """Counters since the start; `waiting` is the length of the queues now."""

    starts: int = 0
    parts: int = 0
    failures: int = 0
    loaded: int = 0
    """Voices in the worker's memory."""
    loads: int = 0
    """Voices that were loaded since it started."""
    waiting: int = 0


@dataclass(eq=False)
class SpeechWorker:
    """Keeps one worker process running and hands parts to it, one at a time. For one event loop."""

    command: tuple[str, ...]
    part_timeout_s: float = PART_TIMEOUT_S
    on_broken: Callable[[str], None] = lambda voice: None
    """Called with a voice whose files cannot be loaded."""
    statistics: WorkerStatistics = field(default_factory=WorkerStatistics)
    voices: tuple[VoiceInfo, ...] = ()
    providers: frozenset[str] = frozenset()
    """Of which the worker can load voices."""
    _queue: list[tuple[float, int, _SpeechJob]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _greeted: bool = False

    def __post_init__(self) -> None:
        environment = bare_environment(threads=2)
        self._process = WorkerProcess(
            "speech worker",
            self.command,
            self._serve,
            times=TIMES,
            environment=environment,
            lost=self._on_lost,
            nice=NICE,
        )

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._process.pid

    async def open(self) -> None:
        """Starts the worker; returns when it is warm or its first start has failed (then it is tried again meanwhile)."""
        if self._process.open():
            self._settled.clear()
        await self._settled.wait()

    async def aclose(self) -> None:
        """Ends the process (within three seconds) and fails what waits."""
        await self._process.aclose()
        self._settled.set()  # also where it did not get so far
        self._fail_waiting("The speech service is shutting down.")

    def submit(
        self,
        voice: str,
        text: str,
        *,
        speed: float = 1.0,
        said: tuple[Said, ...] = (),
        due: float | None = None,
    ) -> asyncio.Future[SpokenPart]:
        """Queues one part. Cancelling the future takes it out of the queue, or drops the result if it is being made.

        Args:
            voice: one of `voices` by name.
            text: a part as `text.parts` makes them.
            speed: a multiple of the voice's own pace.
            said: what of the text is said otherwise than it is written, in its order.
            due: when its sound is needed, in the event loop's time; None for the first part of an utterance: now.

        Raises:
            ProblemError: `tts_failed` when an utterance begins while too many parts wait, or the worker is closed. The future
                ends with the same code when the worker breaks over this part or cannot be started.
        """
        if not self._process.running:
            raise _failed("The speech service is not running.")
        loop = asyncio.get_running_loop()
        # Later parts are few per utterance and were let in with their first: failing them would break speech off.
        if due is None and sum(not job.result.done() for _, _, job in self._queue) >= PARTS_MAX:
            raise _failed(
                f"The speech service is busy: {PARTS_MAX} parts are waiting. Try again in a second.", retry_after_s=1
            )
        job = _SpeechJob(voice, text, speed, said, loop.create_future())
        heapq.heappush(self._queue, (loop.time() if due is None else due, next(self._order), job))
        self.statistics.waiting = len(self._queue)
        self._wake.set()
        return job.result

    def _on_lost(self, _: str) -> None:
        self.statistics.failures += 1
        if not self._greeted:
            self._fail_waiting("The speech worker does not start.")
        self._settled.set()

    async def _serve(self, link: WorkerLink) -> None:
        self.statistics.starts += 1
        self._greeted = False
        try:
            self._greeted = await self._greet(link)
            if self._greeted:
                await self._make_parts(link)
        finally:
            self._settled.set()

    async def _greet(self, link: WorkerLink) -> bool:
        head, _ = await link.receive(HELLO_TIMEOUT_S)
        try:
            hello = worker_pipe.decode_header(head)
            self.voices = tuple(
                VoiceInfo(
                    str(v["name"]),
                    str(v["language"]),
                    str(v["provider"]),
                    _rate(v["sample_rate"]),
                    str(v.get("quality", "")),
                )
                for v in hello["voices"]
            )
            self.providers = frozenset(str(each) for each in hello.get("providers", ()))
        except (worker_pipe.FramingError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise WorkerLost("its hello was malformed") from error
        log.info("speech worker ready", extra={"voices": len(self.voices), "missing": hello.get("missing", [])})
        self._settled.set()
        return bool(self.voices or self.providers)

    async def _make_parts(self, link: WorkerLink) -> None:
        """Gives the worker one part after the other. Raises WorkerLost when it has ended."""
        gone = asyncio.create_task(link.wait(), name="speech-worker-exit")
        try:
            while True:
                while self._queue:
                    _, _, job = heapq.heappop(self._queue)
                    self.statistics.waiting = len(self._queue)
                    if not job.result.done():
                        await (self._synthesise if job.languages is None else self._rank)(link, job)
                self._wake.clear()
                wake = asyncio.create_task(self._wake.wait())
                try:
                    await asyncio.wait({wake, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    wake.cancel()
                if gone.done():
                    raise WorkerLost("the process ended")
        finally:
            gone.cancel()
            await asyncio.wait([gone])

    async def ranking(self, text: str, languages: list[str]) -> list[tuple[str, float]]:
        """The likeliest of the languages (ISO 639-1) of a text first, with their shares of 1; before any part that waits.

        Empty where it cannot be known: there is no worker, it has no model for it, or too much waits. Cancelling takes it out of
        the queue.
        """
        if not self._process.running or len(self._queue) >= PARTS_MAX:
            return []
        loop = asyncio.get_running_loop()
        job = _SpeechJob("", text, 1.0, (), loop.create_future(), languages)
        heapq.heappush(self._queue, (loop.time(), next(self._order), job))
        self._wake.set()
        try:
            return list(await job.result)
        except ProblemError:
            return []

    async def _rank(self, link: WorkerLink, job: _SpeechJob) -> None:
        ranking: list[tuple[str, float]] = []
        try:
            async with asyncio.timeout(LOADS * self.part_timeout_s):
                header, _ = await link.exchange({"text": job.text, "languages": job.languages})
            ranking = [(str(language), float(share)) for language, share in header["ranking"]]
        except TimeoutError as error:
            raise WorkerLost("it did not find the language of a text in time") from error
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerLost("its ranking of languages was malformed") from error
        finally:
            if not job.result.done():
                job.result.set_result(ranking)

    async def _synthesise(self, link: WorkerLink, job: _SpeechJob) -> None:
        patience_s = self._patience_s(job.voice)
        failure: str | None = "The speech service broke over this text."  # `supervise` logs the error
        try:
            async with asyncio.timeout(patience_s):
                header, pcm = await link.exchange(
                    {"voice": job.voice, "text": job.text, "speed": job.speed, "said": job.said}
                )
            part = _part(header, pcm)
            failure = None if part is not None else self._refused(job.voice, str(header["error"]))
            self.statistics.loaded = int(header.get("loaded", self.statistics.loaded))
            self.statistics.loads = int(header.get("loads", self.statistics.loads))
        except TimeoutError as error:
            failure = f"The speech worker gave no answer within {patience_s:g} s and was restarted."
            raise WorkerLost("a part took too long") from error
        except WorkerLost:
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
        link.settled = True
        if not job.result.done():
            job.result.set_result(part)

    def _patience_s(self, voice: str) -> float:
        """How long a part may take. Once voices come and go in the worker's memory, any part may load one first."""
        known = any(info.name == voice and info.provider not in _LAZY for info in self.voices)
        resident = known and self.statistics.loads <= 1
        return self.part_timeout_s if resident else LOADS * self.part_timeout_s

    def _refused(self, voice: str, error: str) -> str:
        """The failure of a text that the worker did not speak."""
        if not error.startswith(_BROKEN):
            return f"The voice {voice} could not speak this text."
        self.on_broken(voice)
        return (
            f"The voice {voice} cannot be loaded: its file {error.removeprefix(_BROKEN)} is broken. Use another voice."
        )

    def _fail_waiting(self, reason: str) -> None:
        for _, _, job in self._queue:
            _settle(job, _failed(reason))
        self._queue.clear()
        self.statistics.waiting = 0


def _part(header: dict[str, Any], pcm: bytes) -> SpokenPart | None:
    """The answer's part, None when the voice failed on it.

    Raises:
        WorkerLost: the answer is not one: the worker cannot be trusted any more.
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
        raise WorkerLost("the answer was malformed") from error


def _rate(value: object) -> int:
    """Samples per second. Raises ValueError for an invalid one."""
    if not isinstance(value, int) or value not in _RATES:
        raise ValueError("no rate of samples")
    return value


def _settle(job: _SpeechJob, error: ProblemError) -> None:
    if not job.result.done():
        job.result.set_exception(error)
        # The utterance may be closed before it looks: its look-ahead's failure is not reported then.
        job.result.exception()


def _failed(detail: str, retry_after_s: int | None = None) -> ProblemError:
    return ProblemError(ErrorCode.TTS_FAILED, detail, retry_after_s=retry_after_s)
