"""The avatar worker's side of LiveKit's avatar protocol, without I/O: received events in, actions out.

An agent sends one byte stream a segment, faster than real time, and waits for the report that the segment was heard. It must get
it exactly once, whatever becomes of the stream, or it waits for ever. So every stream that came gets a segment of the pipeline,
and what the pipeline says of that segment is passed on once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.messages import Event, PlaybackFinished, PlaybackStarted

AUDIO_TOPIC = "lk.audio_stream"
CLEAR_METHOD = "lk.clear_buffer"
STARTED_METHOD = "lk.playback_started"
FINISHED_METHOD = "lk.playback_finished"

IDLE_S = 10.0
"""A stream of which nothing comes for so long has lost its end. Agents send faster than real time."""
SUPERSEDED_S = 0.5
"""The same for one behind which another stream waits, or whose agent has left the room."""
ABSENT_S = 3.0
"""An agent that is out of sight for so long has left. It is for a moment when the worker's own connection is made anew."""
STUCK_S = 20.0
"""Speech of which nothing comes and nothing is heard for so long is dropped, so that the agent gets an answer."""
STREAMS_MOST = 64
"""Streams that may wait to be read."""
_RATES = range(8000, 48001)
_CHANNELS = range(1, 9)
_RATE_OF_NONE = 16_000


@dataclass(frozen=True, slots=True)
class Begin:
    """Open segment `number` at `rate` Hz; ends the one that was open."""

    number: int
    rate: int


@dataclass(frozen=True, slots=True, eq=False)
class PushAudio:
    """PCM of the open segment, mono int16."""

    samples: Pcm


@dataclass(frozen=True, slots=True)
class End:
    """No more PCM for the open segment."""


@dataclass(frozen=True, slots=True)
class ClearBuffer:
    """Drop everything that was not heard."""


@dataclass(frozen=True, slots=True)
class Close:
    """Read no more of this stream."""

    stream: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not read the stream that has just come. Its id says nothing: it may be that of a stream which is being read."""


@dataclass(frozen=True, slots=True)
class RpcCall:
    """Call a method of the agent."""

    method: str
    payload: str = ""


@dataclass(frozen=True, slots=True)
class Warn:
    """Something is wrong with what came; the session goes on."""

    message: str


Command = Begin | PushAudio | End | ClearBuffer | Close | Refuse | RpcCall | Warn


@dataclass(slots=True)
class _Stream:
    number: int
    rate: int = 0  # 0: its audio cannot be used
    channels: int = 1
    begun: bool = False
    carry: bytes = b""
    alive_at: float = 0.0


@dataclass
class AvatarProtocol:
    """Follows one agent. Times are seconds on a monotonic clock.

    Attributes:
        sender: identity of the agent; streams and calls of others are ignored.
        tail_s: what is on its way to the listeners when the audio is cut, and is still heard.
        segments: streams that came so far; their segments are numbered from 1.
    """

    sender: str
    tail_s: float = 0.0
    segments: int = 0
    _streams: dict[str, _Stream] = field(default_factory=dict)  # in the order of coming; the first is being read
    _unreported: dict[int, float] = field(
        default_factory=dict
    )  # segments whose end the agent waits for: seconds that came
    _here: bool = True
    _seen_at: float = 0.0
    _progress: tuple[int, int, float] = (0, 0, 0.0)
    _received: int = 0
    _moved_at: float = 0.0

    # --- what the agent does

    def arrived(self, stream: str, sender: str, attributes: Mapping[str, str], now: float) -> list[Command]:
        """A stream's header came. It is read when those before it have ended."""
        if sender != self.sender or stream in self._streams:
            return [Refuse()]
        self._here, self._seen_at = True, now
        if len(self._streams) >= STREAMS_MOST:
            text = f"More than {STREAMS_MOST} streams of {sender!r} wait to be read: this one is not played."
            return [Warn(text), Refuse(), _finished(0.0, interrupted=True)]
        self.segments += 1
        opened = _Stream(self.segments, alive_at=now)
        self._streams[stream] = opened
        self._unreported[opened.number] = 0.0
        self._moved_at = now
        rate, channels = _number(attributes, "sample_rate"), _number(attributes, "num_channels")
        if rate in _RATES and channels in _CHANNELS:
            opened.rate, opened.channels = rate, channels
            return []
        format = f"sample_rate {attributes.get('sample_rate')!r} and num_channels {attributes.get('num_channels')!r}"
        return [
            Warn(f"A stream of {sender!r} has {format}: give 8000 … 48000 Hz and 1 … 8 channels. It is not played.")
        ]

    def begin(self, stream: str, now: float) -> list[Command]:
        """The stream is read from now on. Nothing comes of one that was cleared meanwhile."""
        found = self._streams.get(stream)
        if found is None:
            return [Close(stream)]
        found.begun, found.alive_at = True, now
        return [Begin(found.number, found.rate or _RATE_OF_NONE)]

    def data(self, stream: str, chunk: bytes, now: float) -> list[Command]:
        """Bytes of it, cut anywhere; none at all say that more waits to be read."""
        found = self._streams.get(stream)
        if found is None:
            return []
        found.alive_at = now
        whole = found.carry + chunk
        size = 2 * found.channels
        found.carry = whole[len(whole) - len(whole) % size :]
        samples = np.frombuffer(whole, "<i2", len(whole) // size * found.channels)
        if not found.rate or not len(samples):
            return []
        self._received += len(samples)
        if found.number in self._unreported:
            self._unreported[found.number] += len(samples) / found.channels / found.rate
        if found.channels > 1:
            samples = samples.reshape(-1, found.channels).mean(axis=1).astype(np.int16)
        return [PushAudio(samples)]

    def ended(self, stream: str) -> list[Command]:
        """Its end came, or will not come."""
        return [End()] if self._streams.pop(stream, None) is not None else []

    def clear(self, sender: str) -> list[Command] | None:
        """`lk.clear_buffer`; None when the caller is not the agent. Streams that came and were not read yet are dropped too."""
        if sender != self.sender:
            return None
        return self._drop()

    def rejoined(self) -> list[Command]:
        """The worker is in the room again, after it was away: it says that it still has the speech it had."""
        return [RpcCall(STARTED_METHOD)] if self._unreported else []

    # --- what the pipeline says

    def on_playback_event(self, event: Event) -> list[Command]:
        """A playback event; passed on once for each segment."""
        if isinstance(event, PlaybackStarted) and event.segment in self._unreported:
            return [RpcCall(STARTED_METHOD)]
        if isinstance(event, PlaybackFinished):
            acts: list[Command] = []
            for stream in [s for s, found in self._streams.items() if found.number == event.segment]:
                del self._streams[stream]  # it was cleared elsewhere
                acts.append(Close(stream))
            if event.segment in self._unreported:
                acts.append(self._finished(event, self._unreported.pop(event.segment)))
            return acts
        return []

    def _finished(self, event: PlaybackFinished, sent_s: float) -> RpcCall:
        position_s = event.position_s
        if event.interrupted and position_s:
            position_s = round(max(position_s, min(position_s + self.tail_s, sent_s)), 3)
        return _finished(position_s, interrupted=event.interrupted)

    # --- what time does

    def tick(self, now: float, heard: tuple[int, float], *, present: bool = True) -> list[Command]:
        """Ends a stream that lost its end, and drops speech that is stuck.

        `heard`: segment and seconds of it. `present`: the agent is in the room.
        """
        self._look(now, present)
        progress = (self._received, *heard)
        if progress != self._progress or not self._unreported:
            self._progress, self._moved_at = progress, now
        if now - self._moved_at > STUCK_S:
            self._moved_at = now
            return [
                Warn(f"Nothing was heard for {STUCK_S:g} s although there is speech: it is dropped."),
                *self._drop(),
            ]
        stream = next(iter(self._streams), None)
        if stream is None or not self._streams[stream].begun:
            return []
        patience = IDLE_S if self._here and len(self._streams) == 1 else SUPERSEDED_S
        if now - self._streams[stream].alive_at <= patience:
            return []
        self._streams.pop(stream)
        return [Warn(f"A stream of {self.sender!r} has lost its end: what came of it is said."), End(), Close(stream)]

    def _look(self, now: float, present: bool) -> None:
        """Once the agent has left, no report is awaited; what it sent is still said."""
        if present:
            self._here, self._seen_at = True, now
        elif self._here and now - self._seen_at > ABSENT_S:
            self._here = False
            self._unreported.clear()

    def _drop(self) -> list[Command]:
        """Every stream gets a segment before all are cleared, so that each is reported."""
        acts: list[Command] = [Begin(s.number, s.rate or _RATE_OF_NONE) for s in self._streams.values() if not s.begun]
        closing: Sequence[Command] = [Close(stream) for stream in self._streams]
        self._streams.clear()
        return [*acts, ClearBuffer(), *closing]


def _finished(position_s: float, *, interrupted: bool) -> RpcCall:
    return RpcCall(FINISHED_METHOD, json.dumps({"playback_position": position_s, "interrupted": interrupted}))


def _number(attributes: Mapping[str, str], name: str) -> int:
    """0 when it is missing or no number."""
    text = attributes.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0
