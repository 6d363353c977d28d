"""Text being spoken: one task per utterance that moves speech from the voice into its segment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics
from orchestrator.tts.base import SpeechChunk

MAX_WAITING = 32
"""Utterances a session may have on their way; a text holds 5000 characters, so this is hours of speech."""
_log = logging.getLogger(__name__)


class SpeechSink(Protocol):
    """Where the speech goes."""

    session_id: str

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

    def say(self, chunks: AsyncGenerator[SpeechChunk, None]) -> int:
        """Opens a segment, begins to fill it in the background, and returns its number."""
        segment = self._sink.open_speech()
        task = asyncio.create_task(self._fill(segment, chunks), name=f"speech-{self._sink.session_id}-{segment}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return segment

    def cancel(self) -> None:
        """Barge-in: ends every synthesis."""
        for task in self._tasks:
            task.cancel()

    async def aclose(self) -> None:
        """Ends every synthesis and waits for it."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _fill(self, segment: int, chunks: AsyncGenerator[SpeechChunk, None]) -> None:
        outcome = "ok"
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if not await self._sink.push_speech(segment, chunk.pcm, chunk.sample_rate, chunk.cues, chunk.words):
                        outcome = "interrupted"
                        break
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        except ProblemError as error:
            outcome = error.code.value
            self._sink.warn(error.code.value, f"Segment {segment} ends early: {error.detail}")
        except Exception:  # noqa: BLE001 - task boundary: a voice that breaks must not take the session with it
            outcome = ErrorCode.TTS_FAILED.value
            _log.exception("speech failed", extra={"session_id": self._sink.session_id, "segment": segment})
            self._sink.warn(ErrorCode.TTS_FAILED.value, f"Segment {segment} ends early: the voice broke.")
        finally:
            self._metrics.speech.labels(outcome=outcome).inc()
            self._sink.end_speech(segment)
