"""The audio path of one running session: its segments, what renders them, the messages to its sender. All on one event loop.

An agent renders the segments (`attach_agent`), or the standby voice while there is no agent (`attach_renderer`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from musetalk_agent.protocol.messages import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL,
    Ack,
    Cleared,
    ErrorEvent,
    Event,
    Hello,
    LinkHello,
    LinkVoice,
    PlaybackFinished,
    PlaybackStarted,
    PublisherChanged,
    WarningEvent,
)
from musetalk_agent.protocol.problems import ProblemError
from orchestrator.agents.agent_client import AgentLease
from orchestrator.agents.agent_link import Pull
from orchestrator.audio.ingest import AudioIngest, AudioLimits
from orchestrator.audio.outgoing_segment import LinkMessage
from orchestrator.audio.segments import DEFAULT_RATE, Clearing, SegmentTracker
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.session.agent_connection import AgentConnection, AgentHandlers
from orchestrator.session.event_outbox import ClientQueue, EventOutbox
from orchestrator.session.speech_queue import SegmentSpans, SpeechQueue
from orchestrator.store.session_store import Progress


@dataclass(frozen=True)
class QueueSizes:
    """How much of a session waits, each with a bound of its own.

    Attributes:
        audio_s: seconds of `/audio` that are to be heard.
        speech_s: seconds of texts that are to be heard.
        segments: open segments, without those that were cleared.
        texts: texts that are spoken or wait for their turn.
        clears: clears that the agent has not answered.
        notes: phonemes and words that are kept with the speech.
        messages: messages for the sender that have not been sent.
    """

    audio_s: float
    speech_s: float
    segments: int
    texts: int
    clears: int
    notes: int
    messages: int


CLEAR_ANSWER_S = 1.0
"""How long `/interrupt` waits for the agent; a link that is down must not hold the caller."""
_log = logging.getLogger(__name__)


class PendingClears:
    """Those of one session."""

    def __init__(self, session_id: str, metrics: Metrics) -> None:
        self._session_id = session_id
        self._metrics = metrics
        self._waiters: dict[int, list[asyncio.Future[float]]] = {}

    async def wait(self, clearing: Clearing) -> float:
        """Waits for the answer, a second at most. Returns the seconds of speech that were dropped, as far as known by then."""
        begun = time.monotonic()
        dropped_s = clearing.dropped_s
        if not clearing.answered:
            waiter = asyncio.get_running_loop().create_future()
            waiters = self._waiters.setdefault(id(clearing), [])
            waiters.append(waiter)
            try:
                async with asyncio.timeout(CLEAR_ANSWER_S):
                    dropped_s = await waiter
            except TimeoutError:
                _log.warning("the agent did not answer a clear in time", extra={"session_id": self._session_id})
            finally:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiters[id(clearing)]
        self._metrics.interrupt_seconds.observe(time.monotonic() - begun)
        return round(dropped_s, 3)

    def answer(self, clearing: Clearing) -> None:
        """It took effect."""
        for waiter in self._waiters.get(id(clearing), ()):
            if not waiter.done():
                waiter.set_result(clearing.dropped_s)

    def give_up(self) -> None:
        """The session is over: releases every caller that waits."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(0.0)


class Renderer(Protocol):
    """An agent's link or the standby voice: pulls messages with `SpeechPipeline.next_item` and reports what was heard."""

    def wake(self) -> None:
        """There may be an item."""
        ...

    def outstanding_s(self, now: float) -> float:
        """Seconds of speech pulled and not yet heard."""
        ...


@dataclass(frozen=True)
class PlayoutFollower:
    """The orchestrator's own voice where it plays the audio that the agent shows: it gets every message that the agent gets.

    Attributes:
        on_forwarded: called with each message that is forwarded to the agent.
        on_voice: called with the agent's playout times.
    """

    on_forwarded: Callable[[LinkMessage], None]
    on_voice: Callable[[LinkVoice], None]

    def mirrored(self, pull: Pull) -> Pull:
        """`pull`, with each message given to `on_forwarded` too."""

        def next_item(now: float, outstanding_s: float, control_only: bool) -> LinkMessage | None:
            item = pull(now, outstanding_s, control_only)
            if item is not None:
                self.on_forwarded(item)
            return item

        return next_item


TICK_S = 0.05
ACK_EVERY_S = 0.2


class SpeechPipeline:
    """The audio path of one session. `run()` must be running, and the connection of `attach_agent` as long as it lasts."""

    def __init__(
        self,
        session_id: str,
        limits: AudioLimits,
        metrics: Metrics,
        events: EventBus,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.session_id = session_id
        self._limits = limits
        self._on_progress = on_progress
        self._metrics = metrics
        self.traces = SegmentSpans(session_id)
        self._tracker = SegmentTracker(limits.backlog_s, self.traces.begin)
        self.next_item = self._tracker.next_item
        """Pulls the next message to render."""
        self.heard = self._tracker.totals.heard_pcm
        """The speech that was heard last, for the film of the session."""
        self.ingest = AudioIngest(self._tracker, limits, metrics)
        self._renderer: Renderer | None = None
        self._drops_before = 0
        self._nowhere = False
        self._clears = PendingClears(session_id, metrics)
        self._acked_samples, self._acked_at, self._noted_segments = 0, 0.0, 0
        self.side: AgentConnection | None = None
        self.outbox = EventOutbox(session_id, metrics, events)
        self.speech = SpeechQueue(session_id, self._tracker, self.outbox, self.traces, metrics, limits.backlog_s)
        self._cleared_samples = 0
        self._inherited: Progress | None = None
        self.suspicion: str | None = None

    # --- life

    async def run(self) -> None:
        """Ends segments whose time is over, until cancelled, which ends every synthesis; never returns normally."""
        try:
            while True:
                await asyncio.sleep(TICK_S)
                self._tick(time.monotonic())
        finally:
            await self.speech.aclose()

    def attach_agent(
        self, lease: AgentLease, *, adopt_after: int | None = None, follower: PlayoutFollower | None = None
    ) -> AgentConnection:
        """Renders the speech through this agent from now on. Run the connection: it ends with the agent, or when cancelled.

        `follower` plays the same audio in the orchestrator's own voice.
        """
        handlers = AgentHandlers(
            pull=self.next_item if follower is None else follower.mirrored(self.next_item),
            at_agent_s=lambda: self._tracker.at_agent_s,
            on_heard=self.on_heard,
            on_event=self.on_event,
            on_end=self._detach_agent,
            on_voice=follower.on_voice if follower is not None else None,
            on_hello=self._greeted if self._inherited is not None else None,
        )
        self.side = AgentConnection(self.session_id, lease, self._metrics, handlers, adopt_after)
        self.attach_renderer(self.side.link)
        return self.side

    def _detach_agent(self, side: AgentConnection) -> None:
        self._drops_before += side.link.drops
        if self.side is side:
            self.side = None

    def inherit(self, known: Progress) -> None:
        """Another process had the session before; what its agent says of it counts more than what is known here."""
        self._inherited = known
        self.outbox.inherit()
        self.ingest.sample_rate = known.sample_rate

    def _greeted(self, hello: LinkHello) -> None:
        known, self._inherited = self._inherited, None
        if known is not None:
            self._tracker.inherit(known.segments, known.unfinished, hello.segments)
            self._cleared_samples = known.cleared_samples
            self.ingest.received_samples = max(hello.received_samples or 0, known.cleared_samples)

    def without_agent(self) -> None:
        """The agent that had the inherited session is gone, and with it what it had not said."""
        if self._inherited is not None:
            self._greeted(LinkHello(items=0, received_samples=self._inherited.received_samples))

    def progress(self) -> Progress:
        """What another process must know to go on with the session."""
        return self._inherited or Progress(
            segments=self._tracker.opened,
            unfinished=self._tracker.unfinished,
            events_seen=self.side.link.events_seen if self.side else 0,
            sample_rate=self.ingest.sample_rate,
            received_samples=self.ingest.received_samples,
            cleared_samples=self._cleared_samples,
        )

    def attach_renderer(self, speaker: Renderer) -> None:
        """Renders the speech from now on; pulls it with `next_item`."""
        self._renderer = speaker
        self._nowhere = False
        self._tracker.attach(shows=self.side is not None, wake=speaker.wake)

    def position(self, at: float) -> tuple[int, float]:
        """The segment that was being heard at `at` (monotonic) and how many seconds of it; stays behind the truth."""
        return self._tracker.position(math.inf if self._nowhere else at)

    def rewind(self, segment: int, heard_s: float, due_at: float | None = None) -> None:
        """The renderer is gone; what was not heard waits for the next one. Clears that were under way are answered.

        `due_at`: when the next one may begin (monotonic); until then what comes before is still being said.
        """
        self._renderer = None
        for clearing in self._tracker.rewind(segment, heard_s, time.monotonic(), due_at or 0.0):
            self._clears.answer(clearing)
        self.speech.room.set()
        self._flush()

    def end(self, problem: ProblemError | None) -> None:
        """The session is over: open segments are reported finished, then the connection closes (1001, or 1011 with the error)."""
        self._tracker.finish_all(time.monotonic())
        self.speech.room.set()
        self._flush()
        self._clears.give_up()
        if problem is not None:
            self.outbox.publish(ErrorEvent(code=problem.code, message=problem.detail))
        self.outbox.close(CLOSE_GOING_AWAY if problem is None else CLOSE_INTERNAL)

    # --- the sender

    def connect(self, sample_rate: int, last_event_id: int | None = None) -> ClientQueue:
        """A new `/audio` connection takes over; `last_event_id` as `EventOutbox.attach` has it.

        Raises ProblemError `sample_rate_changed`.
        """
        self.ingest.check_rate(sample_rate)
        hello = Hello(
            session_id=self.session_id,
            received_samples=self.ingest.received_samples,
            sample_rate=sample_rate,
            limits=self._limits.announced(),
        )
        return self.outbox.attach(hello, last_event_id)

    def audio_start(self) -> None:
        """`audio.start`. Raises ProblemError `backlog_exceeded` when too many segments are open."""
        self._tracker.check_open()
        self._tracker.audio_start(time.monotonic())
        self._tracker.wake()

    def audio_end(self) -> None:
        """`audio.end`."""
        self._tracker.audio_end()
        self._tracker.wake()

    def clear(self) -> Clearing:
        """`clear`: takes effect at once; `cleared` follows when the agent has answered."""
        self.speech.cancel()
        clearing = self._tracker.clear(time.monotonic())
        self._cleared_samples = self.ingest.received_samples
        self.speech.room.set()
        self._on_progress()
        self._tracker.wake()
        self._flush()
        return clearing

    async def interrupt(self) -> float:
        """A clear that waits for the agent's answer, a second at most. Returns the seconds of speech that were dropped."""
        return await self._clears.wait(self.clear())

    # --- what is known

    def queues(self) -> QueueSizes:
        """How much waits now, for `/debug/audio` and `/metrics`."""
        tracker = self._tracker
        return QueueSizes(
            audio_s=round(tracker.audio_s, 3),
            speech_s=round(tracker.speech_s, 3),
            segments=tracker.open_segments,
            texts=self.speech.waiting,
            clears=tracker.clears,
            notes=tracker.notes,
            messages=self.outbox.waiting,
        )

    @property
    def backlog_s(self) -> float:
        """Seconds of speech that wait to be heard, here or at the agent."""
        speaker = self._renderer
        return self._tracker.waiting_s + (speaker.outstanding_s(time.monotonic()) if speaker else 0.0)

    @property
    def at_agent_s(self) -> float:
        """Seconds that were handed to the renderer, and are not known to be heard."""
        return self._tracker.at_agent_s

    @property
    def speaking(self) -> bool:
        """Whether a segment is being heard that is not silent now."""
        return self._tracker.playing and not self._resting

    @property
    def last_audio_at(self) -> float | None:
        """Unix time of the last PCM, of a sender or a voice."""
        return max(
            (at for at in (self.ingest.last_audio_at, self.speech.last_audio_at) if at is not None), default=None
        )

    @property
    def quiet(self) -> bool:
        """Nothing is open or on its way."""
        return self._tracker.idle

    @property
    def pausing(self) -> bool:
        """Whether no speech is heard: nothing is played nor waits to be, or what is played is silence."""
        if self._resting:
            return True
        elsewhere_s = self.side.liveness.buffered_s if self.side else 0.0  # speech that came through the room
        return self._tracker.waiting_s == 0 and self._tracker.at_agent_s == 0 and elsewhere_s == 0

    @property
    def dropping(self) -> bool:
        """PCM comes and is dropped after a clear; see `AfterClear`."""
        return self._tracker.dropping(time.monotonic())

    @property
    def _resting(self) -> bool:
        return self.side is not None and self.side.liveness.resting

    @property
    def segments(self) -> int:
        """Segments opened so far."""
        return self._tracker.opened

    @property
    def position_s(self) -> float:
        """Seconds heard since the session began."""
        return self._tracker.position_s(time.monotonic())

    @property
    def link_connected(self) -> bool:
        """Whether the agent is connected now."""
        return self.side is not None and self.side.link.connected

    @property
    def link_drops(self) -> int:
        """How often the link broke, over all agents."""
        return self._drops_before + (self.side.link.drops if self.side else 0)

    def link_delay_s(self) -> float:
        """How long a message of the agent is under way."""
        return self.side.link.delay_s if self.side else 0.0

    @property
    def effective_rate(self) -> int:
        """The session's sample rate, the default before the first sample."""
        return self.ingest.sample_rate or DEFAULT_RATE

    # --- what the renderer reports

    def on_heard(self, segment: int, heard_s: float) -> None:
        """So much of a segment was heard by now, and those before it whole."""
        self._tracker.on_heard(segment, heard_s, time.monotonic())
        self.speech.actions.heard(segment, heard_s)
        self._moved_on()

    def on_event(self, event: Event) -> None:
        """Something happened where the speech is spoken."""
        now = time.monotonic()
        if isinstance(event, PlaybackStarted):
            self._tracker.on_started(event, now)
        elif isinstance(event, PlaybackFinished):
            self._tracker.on_finished(event)
        elif isinstance(event, Cleared):
            clearing = self._tracker.on_cleared(event)
            if clearing is not None:
                self._clears.answer(clearing)
        elif isinstance(event, WarningEvent):
            if event.code in ("wrong_format_suspected", "format_recovered"):
                self.suspicion = event.suspicion
            self.outbox.publish(event)
        elif isinstance(event, PublisherChanged):
            self._nowhere = event.publisher == "none"  # and its clock stands
            self.outbox.publish(event)
        self._moved_on()
        self._flush()

    # --- inside

    def _moved_on(self) -> None:
        """Something was heard or dropped: there may be room for texts here, and for PCM at the speaker."""
        self.speech.room.set()
        self._tracker.wake()

    def _tick(self, now: float) -> None:
        if self._tracker.tick(now):
            self._tracker.wake()
        if self._noted_segments != self._tracker.opened:
            self._noted_segments = self._tracker.opened
            self._on_progress()
        self._flush()
        if self.ingest.received_samples != self._acked_samples and now - self._acked_at >= ACK_EVERY_S:
            self._acked_samples, self._acked_at = self.ingest.received_samples, now
            if self.outbox.connection is not None:
                self.outbox.put(Ack(received_samples=self.ingest.received_samples))

    def _flush(self) -> None:
        for event in self._tracker.take_events():
            if isinstance(event, PlaybackFinished):
                self._metrics.segments.labels(interrupted=str(event.interrupted).lower()).inc()
                self.speech.actions.finished(event.segment, interrupted=event.interrupted)
            self.traces.on_event(event)
            self.outbox.publish(event)
