"""A session's side of the link: PCM and messages that it takes in order, and events that it keeps for a reconnect."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.media.playout import VoiceTimingQueue
from musetalk_agent.media.segment import Word
from musetalk_agent.media_types import Cue
from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.problems import ErrorCode, ProblemError

_OPEN_SEGMENTS = 256
_MARGIN_S = 5.0  # beyond the backlog: the orchestrator counts what was heard up to 100 ms later
SHORT_SEGMENTS = 16
"""So many segments in a row that are shorter than a frame are taken for a mistake of the sender."""
ACK_BYTES = 16 << 10
"""PCM taken after which an acknowledgement leaves at once: the orchestrator sends 2 s ahead of them, and goes on when they come."""
log = logging.getLogger(__name__)


class ConnectionLost(Exception):
    """The orchestrator's connection is gone; the session waits for the next one."""


class LinkReceiver:
    """Hands PCM and messages to the pipeline.

    What passes a limit is dropped with a warning. It does not end the link: the session would move to another agent, and the
    same would be sent there. The orchestrator keeps to the same limits, so this is for one that does not.

    `items` were taken, `segments` is the highest number begun, and `received_samples` of `/audio` were taken in all (None when no
    segment has reported one).

    Args:
        backlog_s: most speech that may wait to be heard.
        fps: frames per second.
        emit: takes warnings, and the end of a segment that was refused.
    """

    def __init__(self, pipeline: Pipeline, backlog_s: int, fps: int, emit: Callable[[m.Event], None]) -> None:
        self._pipeline = pipeline
        self._backlog_s = backlog_s
        self._fps, self._emit = fps, emit
        self.items = 0
        self.segments = 0
        self.received_samples: int | None = None
        self._rate = 1
        self._counting = False  # the open segment's PCM came over `/audio`
        self._open: int | None = None  # number of the segment that takes PCM
        self._samples = 0  # of that segment
        self._shorts = 0  # segments in a row that were shorter than a frame
        self._warned_short = False
        self.last_audio_at: float | None = None  # `time.time()`

    async def read(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        over: asyncio.Event,
        acknowledge: Callable[[], None],
    ) -> None:
        """Takes what a connection receives until the session is over; calls `acknowledge` when an acknowledgement is due.

        `receive` is the WebSocket's, as ASGI defines it. Raises ConnectionLost, and ProblemError for what breaks the protocol.
        """
        unacknowledged = 0
        while not over.is_set():
            try:
                message = await receive()
            except RuntimeError as error:  # Starlette's: the socket was closed before
                raise ConnectionLost(str(error)) from error
            if message["type"] == "websocket.disconnect":
                raise ConnectionLost(f"closed with {message.get('code', 1006)}")
            item = message.get("bytes")
            if item is None:
                item = message.get("text")
            if item is None:
                raise ProblemError(ErrorCode.INVALID_MESSAGE, "an empty WebSocket message")
            self.take(item)
            unacknowledged += len(item)
            if unacknowledged >= ACK_BYTES:
                unacknowledged = 0
                acknowledge()

    def take(self, item: str | bytes) -> None:
        """One item: PCM or a `LinkMessage`. Raises `ProblemError` for what breaks the protocol."""
        if isinstance(item, str):
            try:
                message = m.link_message.validate_json(item)
            except (ValidationError, json.JSONDecodeError) as error:
                raise ProblemError(ErrorCode.INVALID_MESSAGE, f"not a link message: {error}") from error
            self._obey(message)
            self.items += 1
            return
        if len(item) % 2:
            raise ProblemError(ErrorCode.INVALID_MESSAGE, f"PCM of {len(item)} bytes is not whole int16 samples")
        if self._open is not None and self._pipeline.player.buffered_s > self._backlog_s + _MARGIN_S:
            self._pipeline.end()
            self._refuse(self._open, f"more than {self._backlog_s} s of speech wait to be played")
        samples = np.frombuffer(item, "<i2")
        self._pipeline.push(samples)
        self._samples += len(samples)
        if self._counting and self.received_samples is not None:
            self.received_samples += len(samples)
        self.last_audio_at = time.time()
        self.items += 1

    def _obey(self, message: m.LinkMessage) -> None:
        match message:
            case m.SegmentStart():
                self._begin(message)
            case m.SegmentCues(cues=cues):
                self._pipeline.cue([Cue(c.phoneme, c.start, c.end) for c in cues])
            case m.SegmentCaptions(words=words):
                self._pipeline.caption([Word(w.text, w.start / self._rate) for w in words])
            case m.SegmentEnd():
                self._end()
            case m.LinkClear():
                self._open = None
                self._pipeline.clear()

    def _begin(self, start: m.SegmentStart) -> None:
        self._end()
        self.segments = max(self.segments, start.segment)
        self._rate = start.sample_rate
        self._counting = start.received is not None
        if start.received is not None:
            self.received_samples = start.received + round(start.heard_s * start.sample_rate)
        if self._pipeline.player.open_segments >= _OPEN_SEGMENTS:
            self._refuse(start.segment, f"more than {_OPEN_SEGMENTS} segments wait to be played")
            self._emit(m.PlaybackFinished(segment=start.segment, position_s=start.heard_s, interrupted=True))
            return
        self._open, self._samples = start.segment, round(start.heard_s * start.sample_rate)
        self._pipeline.begin(start.segment, start.sample_rate, start.heard_s, start.in_s, start.traceparent)

    def _end(self) -> None:
        """No more PCM for the open segment."""
        if self._open is not None:
            self._open = None
            self._judge_length()
        self._pipeline.end()

    def _refuse(self, segment: int, why: str) -> None:
        """What comes of the segment from now on is dropped."""
        self._open = None
        log.warning("speech refused", extra={"segment": segment, "reason": why})
        self._emit(
            m.WarningEvent(code=ErrorCode.BACKLOG_EXCEEDED, message=f"Segment {segment} is not spoken further: {why}.")
        )

    def _judge_length(self) -> None:
        if not self._samples or self._warned_short:
            return
        self._shorts = self._shorts + 1 if self._samples * self._fps < self._rate else 0
        if self._shorts == SHORT_SEGMENTS:
            self._warned_short = True
            text = (
                f"{SHORT_SEGMENTS} segments in a row were shorter than a picture ({1000 / self._fps:g} ms). Each of them is "
                "filled up with silence to a whole picture, so that speech takes longer and has gaps: send audio.start and "
                "audio.end around an utterance, not around each message."
            )
            self._emit(m.WarningEvent(code="segments_very_short", message=text))


_EVENTS_KEPT = 512


class EventLog:
    """Events numbered from 1; the last 512 are kept for an orchestrator that reconnects. Due times are sent once or never.

    `changed` is set when there is something to send.
    """

    def __init__(self) -> None:
        self._events: deque[m.LinkEvent] = deque(maxlen=_EVENTS_KEPT)
        self.changed = asyncio.Event()
        self.due = VoiceTimingQueue(self.changed.set)
        self.numbered = 0

    def add(self, event: m.Event) -> None:
        """Numbers and keeps an event."""
        self.numbered += 1
        self._events.append(m.LinkEvent(id=self.numbered, event=event))
        self.changed.set()

    def after(self, last_seen: int) -> list[m.LinkEvent]:
        """Events newer than `last_seen`."""
        return [e for e in self._events if e.id > last_seen]
