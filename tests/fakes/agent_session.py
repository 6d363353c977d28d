"""A session of the fake agent: every item that its link carried, what of it was heard, and the events that were reported."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from fastapi import WebSocket

from musetalk_agent.protocol.http import AgentStartRequest, Microphone, PublisherMode, SessionState
from musetalk_agent.protocol.messages import (
    Cleared,
    Event,
    LinkAck,
    LinkClear,
    LinkEvent,
    LinkHello,
    PlaybackFinished,
    PlaybackStarted,
    SegmentCues,
    SegmentEnd,
    SegmentStart,
    link_message,
)


@dataclass
class FakeSegment:
    """What arrived of one segment."""

    number: int
    rate: int
    base: int = 0
    received: int | None = None
    heard: int = 0
    pcm: bytearray = field(default_factory=bytearray)
    cues: list[tuple[str, int, int]] = field(default_factory=list)
    ended: bool = False
    started: bool = False
    finished: bool = False

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.rate

    @property
    def end(self) -> int:
        """Samples from the segment's own beginning to where its PCM ends."""
        return self.base + len(self.pcm) // 2

    @property
    def heard_pcm(self) -> bytes:
        return bytes(self.pcm[: 2 * (self.heard - self.base)])


@dataclass
class FakeSession:
    """One session: everything the link carried, and the events it reported."""

    request: AgentStartRequest
    state: SessionState = SessionState.READY
    items: int = 0
    texts: list[dict[str, Any]] = field(default_factory=list)
    segments: dict[int, FakeSegment] = field(default_factory=dict)
    events: list[LinkEvent] = field(default_factory=list)
    current: FakeSegment | None = None
    sockets: list[WebSocket] = field(default_factory=list)
    connections: int = 0
    clears: int = 0
    viewers: int = 1
    speaker_present: bool | None = None
    microphone: Microphone | None = None
    error: dict[str, Any] | None = None
    mutes_clears: bool = False
    frames: int = 0
    reports: int = 0
    """Acknowledgements that were sent because time passed."""
    resting: bool = False
    last: FakeSegment | None = None
    played_at: float = 0.0
    """When `play` was called last, while a connection is there."""
    mode: PublisherMode = PublisherMode.AUTO
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pcm(self) -> bytes:
        return b"".join(bytes(segment.pcm) for segment in self.segments.values())

    @property
    def buffered_s(self) -> float:
        waiting = [segment for segment in self.segments.values() if not segment.finished]
        return sum((segment.end - segment.heard) / segment.rate for segment in waiting)

    def play(self, seconds: float) -> None:
        """So much of what there is is heard."""
        for segment in [s for s in self.segments.values() if not s.finished]:
            step = min(round(seconds * segment.rate), segment.end - segment.heard)
            if step:
                self.last = segment
                self.begin(segment)
            segment.heard += step
            seconds -= step / segment.rate
            if not segment.ended or segment.heard < segment.end:
                return
            self.finish(segment)

    def hello(self) -> LinkHello:
        """As the agent does: what it has of the session, for an orchestrator that adopts it."""
        reported = [s.received + s.end for s in self.segments.values() if s.received is not None]
        return LinkHello(
            items=self.items,
            segments=max(self.segments, default=0),
            received_samples=max(reported, default=None),
            events=len(self.events),
        )

    def ack(self) -> LinkAck:
        last = self.last
        return LinkAck(
            items=self.items,
            buffered_s=self.buffered_s,
            segment=last.number if last else 0,
            heard_s=last.heard / last.rate if last else 0.0,
            frames=self.frames,
            resting=self.resting,
        )

    def emit(self, event: Event) -> None:
        """Something happened; sent now or on the next connection."""
        self.events.append(LinkEvent(id=len(self.events) + 1, event=event))
        self.wake.set()

    def begin(self, segment: FakeSegment) -> None:
        """Its first sample is heard."""
        if not segment.started:
            segment.started = True
            self.emit(PlaybackStarted(segment=segment.number))

    def finish(self, segment: FakeSegment) -> None:
        """It was heard to its end."""
        if segment.finished:
            return
        if segment.pcm:
            self.begin(segment)
        segment.finished = True
        segment.heard = segment.end
        self.emit(PlaybackFinished(segment=segment.number, position_s=segment.end / segment.rate, interrupted=False))

    def take(self, message: Any, *, at_once: bool) -> None:
        """One item of the link. `at_once`: what has come is heard, and a segment is over with its end."""
        if message.get("bytes") is not None:
            assert self.current is not None, "PCM outside a segment"
            self.current.pcm += message["bytes"]
            if at_once:
                self.begin(self.current)
                self.current.heard = self.current.end
                self.last = self.current
            return
        self.texts.append(json.loads(message["text"]))
        reported = link_message.validate_json(message["text"])
        if isinstance(reported, SegmentStart):
            assert reported.segment not in self.segments, "a segment was opened twice"
            base = round(reported.heard_s * reported.sample_rate)
            fresh = FakeSegment(
                reported.segment, reported.sample_rate, base=base, heard=base, received=reported.received
            )
            fresh.started = reported.heard_s > 0
            self.current = self.segments[reported.segment] = fresh
        elif isinstance(reported, SegmentCues):
            assert self.current is not None and self.current.number == reported.segment
            self.current.cues += [(cue.phoneme, cue.start, cue.end) for cue in reported.cues]
        elif isinstance(reported, SegmentEnd) and self.current is None:
            assert (
                reported.segment in self.segments
            )  # an orchestrator that adopted the session ends what has ended: harmless
        elif isinstance(reported, SegmentEnd):
            assert self.current is not None and self.current.number == reported.segment
            self.current.ended = True
            if at_once:
                self.finish(self.current)
            self.current = None
        elif isinstance(reported, LinkClear):
            self._clear()

    def _clear(self) -> None:
        self.clears += 1
        self.current = None
        dropped = 0.0
        if self.mutes_clears:
            return
        for segment in self.segments.values():
            if not segment.finished:
                segment.finished = True
                dropped += (segment.end - segment.heard) / segment.rate
                position_s = segment.heard / segment.rate
                self.emit(PlaybackFinished(segment=segment.number, position_s=position_s, interrupted=True))
        self.emit(Cleared(dropped_s=dropped))
