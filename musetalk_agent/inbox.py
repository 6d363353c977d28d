"""The orchestrator's items as a session takes them, in order, and what it remembers of them for one that adopts it."""

from __future__ import annotations

import json

import numpy as np
from pydantic import ValidationError

from musetalk_agent.clock import utc_now
from musetalk_agent.media import Cue
from musetalk_agent.pipeline import Pipeline
from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.sync.captions import Word

_OPEN_SEGMENTS = 256


class Inbox:
    """Hands PCM and messages to the pipeline.

    `items` were taken, `segments` is the highest number begun, and `received_samples` of `/audio` were taken in all (None when no
    segment has told).

    Args:
        backlog_s: most speech that may wait to be heard.
    """

    def __init__(self, pipeline: Pipeline, backlog_s: int) -> None:
        self._pipeline = pipeline
        self._backlog_s = backlog_s
        self.items = 0
        self.segments = 0
        self.received_samples: int | None = None
        self._rate = 1
        self._counting = False  # the open segment's PCM came over `/audio`
        self.last_audio_at: str | None = None

    def take(self, item: str | bytes) -> None:
        """One item: PCM or a `LinkMessage`. Raises `ProblemError` for what breaks the protocol."""
        if isinstance(item, bytes):
            self._push(item)
        else:
            try:
                message = m.link_message.validate_json(item)
            except (ValidationError, json.JSONDecodeError) as error:
                raise ProblemError(ErrorCode.INVALID_MESSAGE, f"not a link message: {error}") from error
            self._obey(message)
        self.items += 1

    def _push(self, item: bytes) -> None:
        if len(item) % 2:
            raise ProblemError(ErrorCode.INVALID_MESSAGE, f"PCM of {len(item)} bytes is not whole int16 samples")
        if self._pipeline.playback.buffered_s > self._backlog_s + 5:
            text = f"More than {self._backlog_s} s of speech wait to be played."
            raise ProblemError(ErrorCode.BACKLOG_EXCEEDED, text, limit=self._backlog_s)
        samples = np.frombuffer(item, "<i2")
        self._pipeline.push(samples)
        if self._counting and self.received_samples is not None:
            self.received_samples += len(samples)
        self.last_audio_at = utc_now()

    def _obey(self, message: m.LinkMessage) -> None:
        match message:
            case m.SegmentStart():
                self._begin(message)
            case m.SegmentCues(cues=cues):
                self._pipeline.cue([Cue(c.phoneme, c.start, c.end) for c in cues])
            case m.SegmentCaptions(words=words):
                self._pipeline.caption([Word(w.text, w.start / self._rate) for w in words])
            case m.SegmentEnd():
                self._pipeline.end()
            case m.LinkClear():
                self._pipeline.clear()

    def _begin(self, start: m.SegmentStart) -> None:
        if self._pipeline.playback.open_segments >= _OPEN_SEGMENTS:
            text = f"More than {_OPEN_SEGMENTS} segments wait to be played."
            raise ProblemError(ErrorCode.BACKLOG_EXCEEDED, text, limit=_OPEN_SEGMENTS)
        self.segments = max(self.segments, start.segment)
        self._rate = start.sample_rate
        self._counting = start.received is not None
        if start.received is not None:
            self.received_samples = start.received + round(start.heard_s * start.sample_rate)
        self._pipeline.begin(start.segment, start.sample_rate, start.heard_s, start.in_s, start.traceparent)
