"""Text being spoken: one task per utterance that moves speech from the voice into its segment."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics
from orchestrator.session.utterances import Utterances
from orchestrator.tts.base import SpeechChunk

MAX_WAITING = 32
"""Utterances a session may have on their way; a text holds 5000 characters, so this is hours of speech."""
_log = logging.getLogger(__name__)


class SpeechSink(Protocol):
    """Where the speech goes."""

    session_id: str
    traces: Utterances

    def open_speech(self) -> int:
        """Opens a segment and returns its number."""
        ...

    async def push_speech(
        self, segment: int, pcm: bytes, rate: int, cues: Sequence[CueItem], words: Sequence[CaptionWord] = ()
    ) -> bool:
        """Appends speech when there is room for it. False: the segment is over."""
        ...

    def end_speech(self, segment: int) -> None:
        """No more speech for the segment."""
        ...

    def warn(self, code: str, message: str) -> None:
        """Tells the session's sender."""
        ...


@dataclass(eq=False)
class Utterance:
    """A text on its way into its segment. `failure` is why it ended early, if a voice broke."""

    segment: int
    failure: ProblemError | None = None


class Speech:
    """The utterances of one session. They synthesise at the same time and play in the order in which they were asked for."""

    def __init__(self, sink: SpeechSink, metrics: Metrics) -> None:
        self._sink = sink
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self) -> None:
        """Raises ProblemError `backlog_exceeded` when too many utterances wait already."""
        if len(self._tasks) >= MAX_WAITING:
            raise ProblemError(
                ErrorCode.BACKLOG_EXCEEDED,
                f"{MAX_WAITING} texts are waiting to be spoken: wait for playback.finished, or interrupt.",
                limit=MAX_WAITING,
            )

    def say(
        self, chunks: AsyncGenerator[SpeechChunk, None], *, on_over: Callable[[], None] = lambda: None
    ) -> Utterance:
        """Opens a segment and begins to fill it in the background. `on_over` is called when nothing more is put into it."""
        utterance = Utterance(self._sink.open_speech())
        name = f"speech-{self._sink.session_id}-{utterance.segment}"
        task = asyncio.create_task(self._fill(utterance, chunks), name=name)
        self._tasks.add(task)
        self._metrics.speech_waiting.inc()
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._metrics.speech_waiting.dec())
        task.add_done_callback(lambda _: on_over())
        return utterance

    def cancel(self) -> None:
        """Barge-in: ends every synthesis."""
        for task in self._tasks:
            task.cancel()

    async def aclose(self) -> None:
        """Ends every synthesis and waits for it."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _fill(self, utterance: Utterance, chunks: AsyncGenerator[SpeechChunk, None]) -> None:
        outcome, segment = "ok", utterance.segment
        begun: float | None = time.monotonic()
        span = self._sink.traces.child(segment, "synthesis")
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if begun is not None:
                        self._metrics.speech_first_seconds.observe(time.monotonic() - begun)
                        begun = None
                        span.event("first.sound")
                    if not await self._sink.push_speech(segment, chunk.pcm, chunk.sample_rate, chunk.cues, chunk.words):
                        outcome = "interrupted"
                        break
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        except ProblemError as error:
            outcome, utterance.failure = error.code.value, error
            self._sink.warn(error.code.value, f"Segment {segment} ends early: {error.detail}")
        except Exception:  # noqa: BLE001 - task boundary: a voice that breaks must not take the session with it
            outcome = ErrorCode.TTS_FAILED.value
            utterance.failure = ProblemError(ErrorCode.TTS_FAILED, "The voice broke: try again.")
            _log.exception("speech failed", extra={"session_id": self._sink.session_id, "segment": segment})
            self._sink.warn(ErrorCode.TTS_FAILED.value, f"Segment {segment} ends early: the voice broke.")
        finally:
            self._metrics.speech.labels(outcome=outcome).inc()
            span.set(outcome=outcome)
            span.end()
            self._sink.end_speech(segment)
