"""Texts that a session speaks: one job a text, one after the other, from the voice into a segment of its own.

`TextStream` is a text that is spoken while it is still being written. `SegmentSpans` traces each segment as a span.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from musetalk_agent.protocol import traces
from musetalk_agent.protocol.action_marks import MarkTimes
from musetalk_agent.protocol.messages import PlaybackFinished, PlaybackStarted, ServerMessage, WarningEvent
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.traces import OFF, Span
from orchestrator.audio.outgoing_segment import BYTES_PER_SAMPLE, OutgoingSegment, seconds
from orchestrator.audio.segments import SegmentTracker
from orchestrator.metrics import Metrics
from orchestrator.session.event_outbox import EventOutbox
from orchestrator.session.spoken_actions import SpokenActions, TextActions
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import SpeechChunk


class SegmentSpans:
    """Spans of the open segments. The agent's part of a trace hangs on them, also after the session has moved."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._open: dict[int, Span] = {}

    def begin(self, segment: int) -> str | None:
        """A segment was opened, by the request that is being answered if one is. Returns its span for others to hang on."""
        span = traces.begin("utterance", traces.current(), session_id=self._session_id, segment=segment)
        if span is not OFF:
            self._open[segment] = span
        return span.traceparent

    def child(self, segment: int, name: str) -> Span:
        """A part of an utterance, which the caller ends."""
        span = self._open.get(segment)
        return traces.begin(name, span.traceparent) if span is not None else OFF

    def on_event(self, event: ServerMessage) -> None:
        """Records an event of the session on the span of its segment."""
        if isinstance(event, PlaybackStarted) and event.segment in self._open:
            self._open[event.segment].event(event.type)
        elif isinstance(event, PlaybackFinished) and event.segment in self._open:
            span = self._open.pop(event.segment)
            span.set(interrupted=event.interrupted, position_s=event.position_s)
            span.end()

    def lost(self, cause: str) -> None:
        """The agent was lost; another one goes on."""
        for span in self._open.values():
            span.event("agent.lost", cause=cause)


MAX_WAITING = 32
"""Utterances a session may have on their way; a text holds 5000 characters, so this is hours of speech."""
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class SpeechJob:
    """A text on its way into its segment. `failure` is why it ended early, if a voice broke."""

    segment: int
    failure: ProblemError | None = None


class SpeechQueue:
    """The utterances of one session. They are synthesised one after the other, in the order in which they were asked for and play.

    An utterance begins when the one before it is complete, so what it waits for is only what is heard before it: texts cannot hold
    each other up, a provider is asked for one thing at a time, and no audio of a later text takes the room of an earlier one.

    Args:
        session_id: for logs.
        tracker: the session's segments.
        outbox: where warnings for the session's sender go.
        spans: traces of the segments.
        metrics: where texts are counted.
        backlog_s: seconds of texts that are made ahead.

    Attributes:
        room: to be set when something was heard or dropped, so that there may be room for more.
        last_audio_at: Unix time of the last PCM.
        actions: what is done when a place in the speech is heard.
    """

    def __init__(
        self,
        session_id: str,
        tracker: SegmentTracker,
        outbox: EventOutbox,
        spans: SegmentSpans,
        metrics: Metrics,
        backlog_s: float,
    ) -> None:
        self._session_id = session_id
        self._tracker, self._outbox, self._spans = tracker, outbox, spans
        self._metrics = metrics
        self._backlog_s = backlog_s
        self.room = asyncio.Event()
        self.last_audio_at: float | None = None
        self.actions = SpokenActions()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Utterances that are spoken or wait for their turn."""
        return len(self._tasks)

    def check(self) -> None:
        """Raises ProblemError `backlog_exceeded` when too many utterances wait, too many voices have not closed, or too many
        segments are open.
        """
        if len(self._tasks) >= MAX_WAITING or len(self._ending) >= 2 * MAX_WAITING:
            raise ProblemError(
                ErrorCode.BACKLOG_EXCEEDED,
                f"{MAX_WAITING} texts are waiting to be spoken: wait for playback.finished, or interrupt.",
                limit=MAX_WAITING,
            )
        self._tracker.check_open()

    def say(
        self,
        speak: Callable[[], AsyncGenerator[SpeechChunk, None]],
        *,
        on_over: Callable[[], None] = lambda: None,
        actions: TextActions | None = None,
    ) -> SpeechJob:
        """Opens a segment and fills it with what `speak` makes in the background, when its turn comes.

        `on_over` is called when nothing more is put into it. `actions` are the marks of the text that `speak` says: their clips are
        played as they are heard.

        Raises what `check` and `speak` raise.
        """
        self.check()
        chunks = speak()
        segment = self._tracker.open_segment(time.monotonic(), speech=True)
        utterance = SpeechJob(segment.number)
        name = f"speech-{self._session_id}-{segment.number}"
        task = asyncio.create_task(self._fill(utterance, segment, chunks, self._turn, actions), name=name)
        self._tasks.add(task)
        self._metrics.speech_waiting.inc()
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._ending.discard)
        task.add_done_callback(lambda _: self._metrics.speech_waiting.dec())
        task.add_done_callback(lambda _: on_over())
        return utterance

    def cancel(self) -> None:
        """Barge-in: ends every synthesis. What is said next does not wait until voices have closed."""
        for task in self._tasks:
            task.cancel()
        self._ending |= self._tasks
        self._tasks.clear()
        self.actions.clear()
        self._turn = asyncio.Lock()

    async def aclose(self) -> None:
        """Ends every synthesis and waits for it."""
        self.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _fill(
        self,
        utterance: SpeechJob,
        segment: OutgoingSegment,
        chunks: AsyncGenerator[SpeechChunk, None],
        turn: asyncio.Lock,
        actions: TextActions | None,
    ) -> None:
        outcome, number, speech = "ok", segment.number, self._tracker.totals.speech
        span = self._spans.child(number, "synthesis")
        times = None if actions is None else MarkTimes(actions.marks)
        try:
            async with aclosing(chunks), turn:
                begun: float | None = time.monotonic()
                async for chunk in chunks:
                    if begun is not None:
                        self._metrics.speech_first_seconds.observe(time.monotonic() - begun)
                        begun = None
                        span.event("first.sound")
                    more_s = len(chunk.pcm) / (BYTES_PER_SAMPLE * chunk.sample_rate)
                    # Texts are made one after the other, so only what is heard earlier can hold one up.
                    while not segment.over and (ahead_s := seconds(speech)) and ahead_s + more_s > self._backlog_s:
                        self.room.clear()
                        await self.room.wait()
                    if segment.over:
                        outcome = "interrupted"
                        break
                    if actions is not None and times is not None:
                        for word in chunk.words:
                            self._plan(number, word.start / chunk.sample_rate, times.reached(word.text), actions)
                    self._metrics.speech_notes_dropped.inc(segment.add_notes(chunk.cues, chunk.words))
                    if chunk.pcm:
                        segment.append(chunk.pcm, chunk.sample_rate, time.monotonic())
                    self.last_audio_at = time.time()
                    self._tracker.wake()
                else:
                    if actions is not None and times is not None:
                        self._plan(number, math.inf, times.rest(), actions)
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        except ProblemError as error:
            outcome, utterance.failure = error.code.value, error
            self._warn(error.code, f"Segment {number} ends early: {error.detail}")
        except Exception:  # noqa: BLE001 - task boundary: a voice that breaks must not take the session with it
            outcome = ErrorCode.TTS_FAILED.value
            utterance.failure = ProblemError(ErrorCode.TTS_FAILED, "The voice broke: try again.")
            _log.exception("speech failed", extra={"session_id": self._session_id, "segment": number})
            self._warn(ErrorCode.TTS_FAILED, f"Segment {number} ends early: the voice broke.")
        finally:
            self._metrics.speech.labels(outcome=outcome).inc()
            span.set(outcome=outcome)
            span.end()
            segment.end()
            self._tracker.wake()

    def _plan(self, segment: int, at_s: float, names: list[str], actions: TextActions) -> None:
        for name in names:
            if not self.actions.plan(segment, at_s, partial(actions.play, name)):
                _log.warning("an action too many", extra={"session_id": self._session_id, "action": name})

    def _warn(self, code: ErrorCode, message: str) -> None:
        self._outbox.publish(WarningEvent(code=code.value, message=message))


TEXT_BYTES = 64 << 10
"""Longest text, in UTF-8: an hour of speech."""
PAUSE_S = 30.0
"""A text that pauses for longer is taken as complete: what plays after it shall not wait for ever."""
_PIECE = 1024
"""Characters that are cut into sentences at once."""


class TextStream:
    """One text. Its segment is opened by the first word.

    Writing never waits: what the voice is not ready for is kept here, up to `TEXT_BYTES`. So the reader of a connection can go on
    reading it, and a `clear` is seen whatever waits.
    """

    def __init__(
        self,
        speech: SpeechQueue,
        speak: Callable[[GrowingText], AsyncGenerator[SpeechChunk, None]],
        actions: TextActions | None = None,
    ) -> None:
        self._speech = speech
        self._speak = speak
        self._actions = actions
        self._text = GrowingText()
        self._written = ""
        self._ended = False
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._feeding: asyncio.Task[None] | None = None
        self._bytes = 0
        self.utterance: SpeechJob | None = None
        self.over = asyncio.Event()
        """Set when the segment takes no more text."""

    def write(self, piece: str) -> bool:
        """More text. False: the segment is over.

        Raises:
            ProblemError: `message_too_large`, `backlog_exceeded`, and what `speak` raises at once.
        """
        self._bytes += len(piece.encode(errors="replace"))
        if self._bytes > TEXT_BYTES:
            raise ProblemError(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"The text passes {TEXT_BYTES} bytes: end it, and begin another.",
                field="text",
                limit=TEXT_BYTES,
            )
        if self.over.is_set() or self._ended:
            return False
        self._take(piece if self._actions is None else self._actions.marks.push(piece))
        return True

    def _take(self, piece: str) -> None:
        """Text without its marks."""
        self._written += piece
        if self.utterance is None and any(c.isalnum() for c in piece):
            speak = partial(self._speak, self._text)
            self.utterance = self._speech.say(speak, on_over=self._close, actions=self._actions)
            name = f"dictation-{self.utterance.segment}"
            self._feeding = asyncio.create_task(self._feed(), name=name)
        self._changed.set()

    async def drain(self) -> None:
        """Waits until the voice has room for all that was written, or the segment is over. Cancelling is harmless."""
        while self._feeding is not None and self._written and not self.over.is_set():
            self._drained.clear()
            await self._drained.wait()

    def end(self) -> None:
        """The text is complete. Safe to call twice."""
        if self._actions is not None and self.utterance is not None and not self._ended and not self.over.is_set():
            self._take(self._actions.marks.end())
        self._ended = True
        self._changed.set()

    async def _feed(self) -> None:
        """Hands the text to the voice as that takes it. Ends with the text, or with the segment."""
        try:
            while not self.over.is_set():
                if self._written:
                    piece, self._written = self._written[:_PIECE], self._written[_PIECE:]
                    await self._text.push(piece)
                elif self._ended:
                    return
                else:
                    self._drained.set()
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            self._text.end()
            self._drained.set()

    def _close(self) -> None:
        self.over.set()
        self._text.abandon()
        self._written = ""
        self._changed.set()
        self._drained.set()
