"""Text messages of the two `/audio` WebSockets.

The public one (client → orchestrator) and the inner one (orchestrator → agent) share the events that come back. Binary messages
are raw PCM, int16 little endian mono. The inner link numbers what it carries: every message of the orchestrator, text or binary,
counts as one *item*; the agent reports in `link.hello` and `link.ack` how many items it has taken, so that after a drop the
orchestrator goes on from there and nothing is lost or taken twice. Events of the agent carry `id`, counted from 1, and the
orchestrator names the last one it has seen when it connects (`events_after`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

PROTOCOL_VERSION = 1
CLOSE_GOING_AWAY = 1001
CLOSE_POLICY = 1008
CLOSE_INTERNAL = 1011
CLOSE_RESTART = 1012
TAKEN_OVER = "a newer link took over"
"""Reason with which an agent closes (1008) a session's link when another one was made."""


class Message(BaseModel):
    """Base of every text message; unknown fields are ignored, so that newer peers may add some. Numbers are finite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class AudioStart(Message):
    """Opens a segment (and ends the one that was open)."""

    type: Literal["audio.start"] = "audio.start"


class AudioEnd(Message):
    """Ends the open segment."""

    type: Literal["audio.end"] = "audio.end"


class Clear(Message):
    """Barge-in: everything not yet played is dropped."""

    type: Literal["clear"] = "clear"


class Ping(Message):
    """Answered by `pong`."""

    type: Literal["ping"] = "ping"


ClientMessage = Annotated[AudioStart | AudioEnd | Clear | Ping, Field(discriminator="type")]
client_message: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
CLIENT_TYPES = frozenset({"audio.start", "audio.end", "clear", "ping"})


class Limits(BaseModel):
    """What a sender may do; past it comes an `error`, never a silent drop."""

    message_bytes: int
    backlog_s: float
    bytes_per_s: int
    segments: int = 256


class Hello(Message):
    """First message of every public connection. A sender resumes with `pcm[received_samples:]`."""

    type: Literal["hello"] = "hello"
    protocol: int = PROTOCOL_VERSION
    session_id: str
    received_samples: int
    sample_rate: int
    limits: Limits


class Ack(Message):
    """Samples of `/audio` taken by the session so far, at the sender's rate."""

    type: Literal["ack"] = "ack"
    received_samples: int


class Pong(Message):
    """Answer to `ping`."""

    type: Literal["pong"] = "pong"


class EventMessage(Message):
    """Something happened. `id` is its number in the session's history, as on `/events`; none on the inner link."""

    id: int | None = None


class PlaybackStarted(EventMessage):
    """The first sample of the segment left for the room."""

    type: Literal["playback.started"] = "playback.started"
    segment: int


class PlaybackFinished(EventMessage):
    """The segment is over: `position_s` seconds of it were played; 0 when it never began."""

    type: Literal["playback.finished"] = "playback.finished"
    segment: int
    position_s: float
    interrupted: bool


class Cleared(EventMessage):
    """A clear took effect; `dropped_s` seconds of speech will not be heard."""

    type: Literal["cleared"] = "cleared"
    dropped_s: float


class WarningEvent(EventMessage):
    """Something is likely wrong, the connection goes on."""

    type: Literal["warning"] = "warning"
    code: str
    message: str
    suspicion: str | None = None


class ErrorEvent(EventMessage):
    """Something is wrong; the connection closes with 1008 (the sender's fault) or 1011 (ours)."""

    type: Literal["error"] = "error"
    code: str
    message: str


class PublisherChanged(EventMessage):
    """Media take another way now: `publisher` is `livekit`, `whip`, `rtmp`, or `none` while nothing can be reached."""

    type: Literal["publisher.changed"] = "publisher.changed"
    publisher: str
    reason: str


class StateChanged(EventMessage):
    """The session's state, as `GET /session/{id}` reports it, has changed. Not sent for `ready` ⇄ `speaking`."""

    type: Literal["session.state"] = "session.state"
    state: str
    reason: str | None = None


PublicEvent = PlaybackStarted | PlaybackFinished | Cleared | WarningEvent | ErrorEvent | PublisherChanged | StateChanged
ServerMessage = Hello | Ack | Pong | PublicEvent


class SegmentStart(Message):
    """Inner link: opens segment `segment` (counted from 1); the PCM after it belongs to it, at `sample_rate` Hz.

    `heard_s` seconds of the segment were heard before, through another agent: what follows begins there, `playback.started` was
    sent if it is above 0, and `position_s` counts from the segment's own beginning. `received` is the session's count of `/audio`
    samples before the segment's first one; None for speech that did not come over `/audio`. What comes before is said by another
    else for `in_s` more seconds: the segment's audio does not leave earlier. `traceparent` is the utterance's span.
    """

    type: Literal["segment.start"] = "segment.start"
    segment: int = Field(ge=1)
    sample_rate: int = Field(ge=8000, le=48000)
    heard_s: float = Field(default=0.0, ge=0)
    received: int | None = Field(default=None, ge=0)
    in_s: float = Field(default=0.0, ge=0, le=5)
    traceparent: str | None = Field(default=None, max_length=64)


class CueItem(BaseModel):
    """A phoneme known beforehand: IPA symbol, first and past-the-last sample at the segment's own rate."""

    phoneme: str
    start: int
    end: int


class SegmentCues(Message):
    """Inner link: phonemes of the open segment, sent before their audio."""

    type: Literal["segment.cues"] = "segment.cues"
    segment: int
    cues: list[CueItem]


class CaptionWord(BaseModel):
    """A piece of the text as viewers read it, with the space after it: a word, or a clause where words are not known.

    First and past-the-last sample of its audio, at the segment's own rate and from its beginning.
    """

    text: str
    start: int
    end: int


class SegmentCaptions(Message):
    """Inner link: what the open segment says, in order, sent before its audio."""

    type: Literal["segment.captions"] = "segment.captions"
    segment: int
    words: list[CaptionWord]


class SegmentEnd(Message):
    """Inner link: no more PCM for the segment."""

    type: Literal["segment.end"] = "segment.end"
    segment: int


class LinkClear(Message):
    """Inner link: drop everything that is not played, whichever segment it belongs to."""

    type: Literal["clear"] = "clear"


LinkMessage = Annotated[
    SegmentStart | SegmentCues | SegmentCaptions | SegmentEnd | LinkClear, Field(discriminator="type")
]
link_message: TypeAdapter[LinkMessage] = TypeAdapter(LinkMessage)


class LinkHello(Message):
    """First message of the agent on every inner connection.

    For an orchestrator that adopts the session: `segments` were begun so far, `received_samples` of `/audio` were taken (None
    when no segment has reported one), `events` were numbered.
    """

    type: Literal["link.hello"] = "link.hello"
    protocol: int = PROTOCOL_VERSION
    items: int
    segments: int = 0
    received_samples: int | None = None
    events: int = 0


class LinkAck(Message):
    """Items taken so far; at least every 250 ms while items come or audio is heard.

    `segment` is the one that is being heard, or was heard last (0: none yet), and `heard_s` how much of it, from its own beginning.
    `frames` counts frames published, `draining` asks that the session be moved elsewhere. `resting`: no one speaks in what is
    being heard, so the avatar is idle although a segment is open.
    """

    type: Literal["link.ack"] = "link.ack"
    items: int
    position_s: float = 0.0
    buffered_s: float = 0.0
    segment: int = 0
    heard_s: float = 0.0
    frames: int = 0
    draining: bool = False
    resting: bool = False


class LinkVoice(Message):
    """Inner link, when the orchestrator publishes the voice: sample `heard_s` of segment `segment` is due `in_s` after this message
    was sent, and those after it follow without a gap until the next such message, a clear, or `held`.

    `held`: the voice pauses there.
    """

    type: Literal["link.voice"] = "link.voice"
    segment: int
    heard_s: float
    in_s: float
    held: bool = False


Event = Annotated[
    PlaybackStarted | PlaybackFinished | Cleared | WarningEvent | ErrorEvent | PublisherChanged,
    Field(discriminator="type"),
]


class LinkEvent(Message):
    """Inner link: something happened; `id` counts from 1 and never repeats within a session."""

    type: Literal["link.event"] = "link.event"
    id: int
    event: Event


AgentMessage = Annotated[LinkHello | LinkAck | LinkEvent | LinkVoice, Field(discriminator="type")]
agent_message: TypeAdapter[AgentMessage] = TypeAdapter(AgentMessage)
