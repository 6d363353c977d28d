"""One session that runs: its segments, its link to the agent, and what its sender is told. All on one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from musetalk_agent.protocol.messages import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL,
    Ack,
    Cleared,
    CueItem,
    Event,
    Failed,
    Hello,
    PlaybackFinished,
    PlaybackStarted,
    PublisherChanged,
    Warned,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.client import AgentLease
from orchestrator.agents.link import AgentLink, LinkPeer
from orchestrator.audio.ingest import Decoder, Gate
from orchestrator.audio.levels import Meter
from orchestrator.audio.limits import BYTES_PER_SAMPLE
from orchestrator.audio.segments import DEFAULT_RATE, Clearing, SegmentTracker
from orchestrator.metrics import Metrics
from orchestrator.session.options import SessionOptions
from orchestrator.session.outbox import Connection, Outbox
from orchestrator.session.speech import Speech

TICK_S = 0.05
ACK_EVERY_S = 0.2
CLEAR_ANSWER_S = 1.0
"""How long `/interrupt` waits for the agent; a link that is down must not hold the caller."""
_log = logging.getLogger(__name__)


class LiveSession:
    """The audio path of one session.

    `run()` must be running; it returns never, and raises what ends the session (`LinkLost`, `LinkOver`, or ProblemError for an
    error the agent told).
    """

    def __init__(self, session_id: str, lease: AgentLease, options: SessionOptions, metrics: Metrics) -> None:
        self.session_id = session_id
        self._options = options
        self._metrics = metrics
        self._tracker = SegmentTracker()
        self._link = AgentLink(lease, session_id, LinkPeer(self._tracker.next_item, self._on_event), metrics)
        self._gate = Gate(options.limits, time.monotonic())
        self._waiters: dict[int, asyncio.Future[float]] = {}
        self._failure: asyncio.Future[ProblemError] = asyncio.get_running_loop().create_future()
        self._told_samples = 0
        self._told_at = 0.0
        self.outbox = Outbox(metrics)
        self.meter = Meter()
        self.speech = Speech(self, metrics)
        self.sample_rate: int | None = None
        self.received_samples = 0
        self.last_audio_at: float | None = None
        self.suspicion: str | None = None

    # --- life

    async def run(self) -> None:
        """Keeps the link up and the segments' time. Cancelling closes the link."""
        link = asyncio.create_task(self._link.run(), name=f"link-{self.session_id}")
        ends: set[asyncio.Future[Any]] = {link, self._failure}
        try:
            while not link.done() and not self._failure.done():
                await asyncio.wait(ends, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                self._tick(time.monotonic())
            if self._failure.done():
                raise self._failure.result()
            link.result()
        finally:
            link.cancel()
            await asyncio.gather(link, self.speech.aclose(), return_exceptions=True)

    async def wait_connected(self) -> None:
        """Returns once the agent's `/audio` is open."""
        await self._link.wait_connected()

    def end(self, problem: ProblemError | None) -> None:
        """The session is over: everything open is told finished, then the connection closes (1001, or 1011 with the error)."""
        self._tracker.finish_all(time.monotonic())
        self._tell()
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_result(0.0)
        if problem is not None:
            self.outbox.put(Failed(code=problem.code, message=problem.detail))
        self.outbox.close(CLOSE_GOING_AWAY if problem is None else CLOSE_INTERNAL)

    # --- the sender

    def connect(self, sample_rate: int) -> Connection:
        """A new `/audio` connection takes over. Raises ProblemError `sample_rate_changed`."""
        self.check_rate(sample_rate)
        hello = Hello(
            session_id=self.session_id,
            received_samples=self.received_samples,
            sample_rate=sample_rate,
            limits=self._options.limits.told(),
        )
        return self.outbox.attach(hello)

    def check_rate(self, sample_rate: int) -> None:
        """Raises ProblemError `sample_rate_changed` when audio has come at another rate before."""
        if self.sample_rate not in (None, sample_rate):
            raise ProblemError(
                ErrorCode.SAMPLE_RATE_CHANGED,
                f"This session's audio has {self.sample_rate} Hz, not {sample_rate}: keep the rate, or start another session.",
                field="sample_rate",
                value=sample_rate,
            )

    def push(self, data: bytes, decoder: Decoder, sample_rate: int) -> None:
        """Takes a message of PCM whole, or raises ProblemError for the limit it passes and takes nothing of it."""
        now = time.monotonic()
        self._gate.check_message(len(data), now)
        self._gate.check_backlog(self.backlog_s, decoder.samples(len(data)) / sample_rate)
        pcm = decoder.decode(data)
        self._metrics.audio_bytes.inc(len(data))
        self.meter.add(pcm, len(data), now)
        if not pcm:
            return
        self.sample_rate = sample_rate
        self.received_samples += len(pcm) // BYTES_PER_SAMPLE
        self.last_audio_at = time.time()
        self._tracker.push(pcm, sample_rate, now)
        self._link.wake()

    def check_text(self, size: int) -> None:
        """Raises ProblemError for a text message that passes a limit."""
        self._gate.check_message(size, time.monotonic())

    def audio_start(self) -> None:
        """`audio.start`."""
        self._tracker.audio_start(time.monotonic())
        self._link.wake()

    def audio_end(self) -> None:
        """`audio.end`."""
        self._tracker.audio_end()
        self._link.wake()

    def clear(self) -> Clearing:
        """`clear`: takes effect at once; `cleared` follows when the agent has answered."""
        self.speech.cancel()
        clearing = self._tracker.clear(time.monotonic())
        self._link.wake()
        return clearing

    async def interrupt(self) -> float:
        """A clear that waits for the agent's answer, a second at most. Returns the seconds of speech that were dropped."""
        begun = time.monotonic()
        clearing = self.clear()
        waiter: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiters[id(clearing)] = waiter
        try:
            async with asyncio.timeout(CLEAR_ANSWER_S):
                dropped_s = await waiter
        except TimeoutError:
            _log.warning("the agent did not answer a clear in time", extra={"session_id": self.session_id})
            dropped_s = clearing.dropped_s
        finally:
            del self._waiters[id(clearing)]
        self._metrics.interrupt_seconds.observe(time.monotonic() - begun)
        return round(dropped_s, 3)

    # --- speech

    def open_speech(self) -> int:
        """Opens a segment for text to speak and returns its number."""
        return self._tracker.open_speech(time.monotonic())

    async def push_speech(self, segment: int, pcm: bytes, rate: int, cues: Sequence[CueItem]) -> bool:
        """Appends speech, after waiting until the backlog has room for it. False when the segment was cleared."""
        more_s = len(pcm) / (BYTES_PER_SAMPLE * rate)
        while self.backlog_s + more_s > self._options.limits.backlog_s:
            await asyncio.sleep(TICK_S)  # playback makes room at its own pace; there is nothing sharper to wait for
            if not self._tracker.is_open(segment):
                return False
        going = self._tracker.push_speech(segment, pcm, rate, cues, time.monotonic())
        self.last_audio_at = time.time()
        self._link.wake()
        return going

    def end_speech(self, segment: int) -> None:
        """No more speech for the segment."""
        self._tracker.end_speech(segment)
        self._link.wake()

    def warn(self, code: str, message: str) -> None:
        """Tells the sender that something went wrong which does not end the connection."""
        self.outbox.put(Warned(code=code, message=message))

    # --- what is known

    @property
    def backlog_s(self) -> float:
        """Seconds of speech that wait to be heard, here or at the agent."""
        return self._tracker.waiting_s + self._link.outstanding_s(time.monotonic())

    @property
    def speaking(self) -> bool:
        """Whether a segment is being heard."""
        return self._tracker.playing

    @property
    def quiet(self) -> bool:
        """Nothing is open or on its way."""
        return self._tracker.idle

    @property
    def segments(self) -> int:
        """Segments opened so far."""
        return self._tracker.opened

    @property
    def position_s(self) -> float:
        """Seconds heard since the session began, as last told by the agent."""
        return self._link.position_s

    @property
    def link_connected(self) -> bool:
        """Whether the agent is connected now."""
        return self._link.connected

    @property
    def link_drops(self) -> int:
        """How often the link broke."""
        return self._link.drops

    @property
    def effective_rate(self) -> int:
        """The session's sample rate, the default before the first sample."""
        return self.sample_rate or DEFAULT_RATE

    # --- inside

    def _on_event(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, PlaybackStarted):
            self._tracker.on_started(event, now)
        elif isinstance(event, PlaybackFinished):
            self._tracker.on_finished(event)
        elif isinstance(event, Cleared):
            clearing = self._tracker.on_cleared(event)
            waiter = self._waiters.get(id(clearing))
            if clearing is not None and waiter is not None and not waiter.done():
                waiter.set_result(clearing.dropped_s)
        elif isinstance(event, Warned):
            self.suspicion = event.suspicion or self.suspicion
            self.outbox.put(event)
        elif isinstance(event, PublisherChanged):
            self.outbox.put(event)
        elif not self._failure.done():
            self._failure.set_result(ProblemError(_code(event.code), event.message))
        self._tell()

    def _tick(self, now: float) -> None:
        if self._tracker.tick(now):
            self._link.wake()
        self._tell()
        if self.received_samples != self._told_samples and now - self._told_at >= ACK_EVERY_S:
            self._told_samples, self._told_at = self.received_samples, now
            if self.outbox.connection is not None:
                self.outbox.put(Ack(received_samples=self.received_samples))

    def _tell(self) -> None:
        for event in self._tracker.take_events():
            if isinstance(event, PlaybackFinished):
                self._metrics.segments.labels(interrupted=str(event.interrupted).lower()).inc()
            self.outbox.put(event)


def _code(code: str) -> ErrorCode:
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.INTERNAL
