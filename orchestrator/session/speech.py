"""Text being spoken: one task per utterance that moves speech from the voice into its segment, one after the other."""

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
        """Opens a segment and returns its number. Raises ProblemError `backlog_exceeded`."""
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
    """The utterances of one session. They are synthesised one after the other, in the order in which they were asked for and play.

    An utterance begins when the one before it is complete, so what it waits for is only what is heard before it: texts cannot hold
    each other up, a provider is asked for one thing at a time, and no sound of a later text takes the room of an earlier one.
    """

    def __init__(self, sink: SpeechSink, metrics: Metrics) -> None:
        self._sink = sink
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Utterances that are spoken or wait for their turn."""
        return len(self._tasks)

    def check(self) -> None:
        """Raises ProblemError `backlog_exceeded` when too many utterances wait already, or too many voices have not closed."""
        if len(self._tasks) >= MAX_WAITING or len(self._ending) >= 2 * MAX_WAITING:
            raise ProblemError(
                ErrorCode.BACKLOG_EXCEEDED,
                f"{MAX_WAITING} texts are waiting to be spoken: wait for playback.finished, or interrupt.",
                limit=MAX_WAITING,
            )

    def say(
        self, chunks: AsyncGenerator[SpeechChunk, None], *, on_over: Callable[[], None] = lambda: None
    ) -> Utterance:
        """Opens a segment and fills it in the background, when its turn comes.

        `on_over` is called when nothing more is put into it.

        Raises ProblemError `backlog_exceeded` when no other segment may be opened; `chunks` is then the caller's.
        """
        utterance = Utterance(self._sink.open_speech())
        name = f"speech-{self._sink.session_id}-{utterance.segment}"
        task = asyncio.create_task(self._fill(utterance, chunks, self._turn), name=name)
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
        self._turn = asyncio.Lock()

    async def aclose(self) -> None:
        """Ends every synthesis and waits for it."""
        self.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _fill(self, utterance: Utterance, chunks: AsyncGenerator[SpeechChunk, None], turn: asyncio.Lock) -> None:
        outcome, segment = "ok", utterance.segment
        span = self._sink.traces.child(segment, "synthesis")
        try:
            async with aclosing(chunks), turn:
                begun: float | None = time.monotonic()
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
