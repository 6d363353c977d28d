"""The rules of segments, without I/O and without a clock: every method takes `now` (seconds, monotonic).

A segment is opened by `audio.start`, by the first PCM after a pause, or by `/speak`. Segments play in the order they were
opened: only the first that is not complete is forwarded to the agent, the others wait here. The agent tells how a segment it
has heard of ends; the tracker tells of those that never got that far. What goes out is pulled by `next_item` (to the agent)
and `take_events` (to the sender).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from musetalk_agent.protocol.messages import (
    Cleared,
    CueItem,
    LinkClear,
    PlaybackFinished,
    PlaybackStarted,
    SegmentCues,
    SegmentEnd,
    SegmentStart,
    ServerMessage,
    Warned,
)
from orchestrator.audio.items import LinkItem
from orchestrator.audio.levels import SILENT_PEAK, peak
from orchestrator.audio.limits import BYTES_PER_SAMPLE

IDLE_END_S = 0.5
"""A segment that began by itself ends after this long without PCM."""
EXPLICIT_END_S = 10.0
"""One opened by `audio.start` is waited for this long."""
CLEAR_PAUSE_S = 0.3
"""After a clear, a sender that pauses (or sends silence) this long has noticed."""
DEFAULT_RATE = 16000
_ITEM_BYTES = 32 << 10


@dataclass
class Segment:
    """One utterance on its way to the agent. `pcm` and `cues` have not been forwarded."""

    number: int
    rate: int | None
    speech: bool = False
    explicit: bool = False
    input_at: float = 0.0
    announced: bool = False
    complete: bool = False
    waiting: deque[bytearray | list[CueItem]] = field(default_factory=deque)
    waiting_bytes: int = 0
    samples: int = 0
    started_at: float | None = None

    @property
    def waiting_s(self) -> float:
        """Seconds of PCM that have not been forwarded."""
        return self.waiting_bytes / (BYTES_PER_SAMPLE * self.rate) if self.rate else 0.0

    def played_s(self, now: float) -> float:
        """Seconds that can have been heard by now."""
        if self.started_at is None or not self.rate:
            return 0.0
        return min(now - self.started_at, self.samples / self.rate)


@dataclass
class Clearing:
    """A clear on its way to the agent and back. `segments` are those the agent never heard of."""

    dropped_s: float
    segments: list[int]


class SegmentTracker:
    """Segments of one session. Bounded by its caller, who looks at `waiting_s` before it pushes."""

    def __init__(self) -> None:
        self.opened = 0
        self._open: dict[int, Segment] = {}
        self._queue: deque[Segment] = deque()
        self._live: Segment | None = None
        self._muted = False
        self._last_pcm_at: float | None = None
        self._silent_s = 0.0
        self._clears_to_send = 0
        self._clearings: deque[Clearing] = deque()
        self._events: list[ServerMessage] = []

    # --- what the sender does

    def audio_start(self, now: float) -> int:
        """`audio.start`: ends the open segment of `/audio`, opens the next and returns its number."""
        self.audio_end()
        self._muted = False
        self._live = self._open_segment(now, rate=None, explicit=True)
        return self._live.number

    def audio_end(self) -> None:
        """`audio.end`: no more PCM for the open segment. Without one it does nothing."""
        if self._live is not None:
            self._live.complete = True
            self._live = None

    def push(self, pcm: bytes, rate: int, now: float) -> None:
        """Whole int16 samples at `rate` Hz. Opens a segment when none is; dropped while a clear is not noticed."""
        if not pcm:
            return
        paused = self._last_pcm_at is None or now - self._last_pcm_at >= CLEAR_PAUSE_S
        self._last_pcm_at = now
        if self._muted and not self._noticed(pcm, rate, paused):
            return
        if self._live is None:
            self._live = self._open_segment(now, rate, explicit=False)
        self._append(self._live, pcm, rate, now)

    def clear(self, now: float) -> Clearing:
        """Drops everything that has not been heard. The result fills when the agent has answered."""
        clearing = Clearing(self.waiting_s, [s.number for s in self._open.values() if not s.announced])
        for segment in self._queue:
            segment.waiting.clear()
            segment.waiting_bytes = 0
        self._queue.clear()
        self._live = None
        self._muted, self._silent_s = True, 0.0
        self._clears_to_send += 1
        self._clearings.append(clearing)
        return clearing

    # --- what `/speak` does

    def open_speech(self, now: float) -> int:
        """Opens a segment behind those that are open and returns its number."""
        return self._open_segment(now, rate=None, speech=True).number

    def push_speech(self, number: int, pcm: bytes, rate: int, cues: Sequence[CueItem], now: float) -> bool:
        """Appends PCM and the phonemes spoken in it. False when the segment is over (cleared): stop synthesising."""
        segment = self._speech(number)
        if segment is None:
            return False
        if cues:
            segment.waiting.append(list(cues))
        if pcm:
            self._append(segment, pcm, rate, now)
        return True

    def end_speech(self, number: int) -> None:
        """No more speech for the segment; without effect when it is over."""
        segment = self._speech(number)
        if segment is not None:
            segment.complete = True

    def is_open(self, number: int) -> bool:
        """Whether more speech may be pushed into the segment."""
        return self._speech(number) is not None

    def _speech(self, number: int) -> Segment | None:
        return next((s for s in self._queue if s.number == number and s.speech and not s.complete), None)

    # --- what time does

    def tick(self, now: float) -> bool:
        """Ends the open segment of `/audio` when its PCM has stayed away too long. Returns whether it did."""
        live = self._live
        if live is None:
            return False
        if live.explicit and now - live.input_at >= EXPLICIT_END_S:
            message = (
                f"Segment {live.number} was opened by audio.start and got no audio for {EXPLICIT_END_S:g} s, "
                "so it was ended: send audio.end after the last PCM."
            )
            self._events.append(Warned(code="segment_timeout", message=message))
            self.audio_end()
        elif not live.explicit and now - live.input_at >= IDLE_END_S:
            self.audio_end()
        return self._live is None

    # --- what the agent tells

    def on_started(self, event: PlaybackStarted, now: float) -> None:
        """The segment begins to be heard."""
        segment = self._open.get(event.segment)
        if segment is not None and segment.started_at is None:
            segment.started_at = now
            self._events.append(event)

    def on_finished(self, event: PlaybackFinished) -> None:
        """The segment is over; a second word about it is ignored."""
        if self._open.pop(event.segment, None) is not None:
            self._events.append(event)

    def on_cleared(self, event: Cleared) -> Clearing | None:
        """The oldest clear took effect. Returns it with the agent's own share added, None when none was asked for."""
        if not self._clearings:
            return None
        clearing = self._clearings.popleft()
        for number in clearing.segments:
            self.on_finished(PlaybackFinished(segment=number, position_s=0.0, interrupted=True))
        clearing.dropped_s += event.dropped_s
        self._events.append(Cleared(dropped_s=round(clearing.dropped_s, 3)))
        return clearing

    def finish_all(self, now: float) -> None:
        """The session is over: every open segment gets its `playback.finished`, every clear its `cleared`."""
        for number, segment in sorted(self._open.items()):
            position = round(segment.played_s(now), 3)
            self._events.append(PlaybackFinished(segment=number, position_s=position, interrupted=True))
        self._events.extend(Cleared(dropped_s=round(clearing.dropped_s, 3)) for clearing in self._clearings)
        self._open.clear()
        self._queue.clear()
        self._clearings.clear()
        self._live = None

    # --- what goes out

    @property
    def waiting_s(self) -> float:
        """Seconds of PCM that have not been forwarded."""
        return sum(segment.waiting_s for segment in self._queue)

    @property
    def playing(self) -> bool:
        """Whether a segment is being heard."""
        return any(segment.started_at is not None for segment in self._open.values())

    @property
    def idle(self) -> bool:
        """Nothing is open."""
        return not self._open

    def take_events(self) -> list[ServerMessage]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_item(self) -> LinkItem | None:
        """The next message to the agent, None when there is nothing to forward now."""
        if self._clears_to_send:
            self._clears_to_send -= 1
            return LinkItem(LinkClear().model_dump_json())
        while self._queue:
            head = self._queue[0]
            if not head.announced and (head.waiting or head.complete):
                head.announced = True
                start = SegmentStart(segment=head.number, sample_rate=head.rate or DEFAULT_RATE)
                return LinkItem(start.model_dump_json())
            if head.waiting:
                return self._forward(head)
            if not head.complete:
                return None
            self._queue.popleft()
            return LinkItem(SegmentEnd(segment=head.number).model_dump_json())
        return None

    def _forward(self, head: Segment) -> LinkItem:
        entry = head.waiting[0]
        if isinstance(entry, list):
            head.waiting.popleft()
            return LinkItem(SegmentCues(segment=head.number, cues=entry).model_dump_json())
        pcm = bytes(entry[:_ITEM_BYTES])
        del entry[:_ITEM_BYTES]
        if not entry:
            head.waiting.popleft()
        head.waiting_bytes -= len(pcm)
        return LinkItem(pcm, len(pcm) / (BYTES_PER_SAMPLE * (head.rate or DEFAULT_RATE)))

    def _open_segment(self, now: float, rate: int | None, *, explicit: bool = False, speech: bool = False) -> Segment:
        self.opened += 1
        segment = Segment(self.opened, rate, speech=speech, explicit=explicit, input_at=now)
        self._open[segment.number] = segment
        self._queue.append(segment)
        return segment

    def _append(self, segment: Segment, pcm: bytes, rate: int, now: float) -> None:
        if segment.rate is None:
            segment.rate = rate
        elif segment.rate != rate:
            raise ValueError(f"segment {segment.number} has {segment.rate} Hz, PCM came at {rate} Hz")
        last = segment.waiting[-1] if segment.waiting else None
        if isinstance(last, bytearray):
            last.extend(pcm)
        else:
            segment.waiting.append(bytearray(pcm))
        segment.waiting_bytes += len(pcm)
        segment.samples += len(pcm) // BYTES_PER_SAMPLE
        segment.input_at = now

    def _noticed(self, pcm: bytes, rate: int, paused: bool) -> bool:
        """Whether the sender's PCM is to be heard again after a clear."""
        silent = peak(pcm) <= SILENT_PEAK
        self._silent_s = self._silent_s + len(pcm) / (BYTES_PER_SAMPLE * rate) if silent else 0.0
        if paused or self._silent_s >= CLEAR_PAUSE_S:
            self._muted = False
        return not self._muted
