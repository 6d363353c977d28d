"""The orchestrator's model of a session: what was asked for, its state and the transitions between states, its options."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from musetalk_agent.protocol.avatar_settings import DEFAULTS, AvatarSettings
from musetalk_agent.protocol.http import (
    AgentSession,
    AudioSource,
    AvatarSource,
    Diagnosis,
    DiagnosisCode,
    Picture,
    PublisherMode,
    SessionState,
    Transport,
    VideoCodec,
    VoiceSource,
)
from musetalk_agent.protocol.messages import StateChanged
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentLease
from orchestrator.audio.ingest import AudioLimits
from orchestrator.conversation.opened_conversation import OpenedConversation
from orchestrator.conversation.options import ConversationRequest
from orchestrator.events import STATE, EventBus
from orchestrator.livekit_rooms import ALPHA, ALPHA_BELOW, RoomIngress
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.store.session_store import Progress
from orchestrator.tts.speech_settings import SpeechSettings


@dataclass(frozen=True)
class SessionOptions:
    """Bounds of a session's life, in seconds.

    Attributes:
        max_s: longest life, and that of its tokens.
        idle_ttl_s: a session without audio for this long ends.
        viewer_grace_s: a session whose room has had no viewer for this long ends.
        speaker_grace_s: a session whose speech comes through the room ends when its speaker has been away for this long.
        start_timeout_s: how long the agent may prepare the avatar.
        keep_s: how long an ended session stays readable.
        poll_s: how often the agent is asked for the session's state.
        speech: how texts are spoken where neither they nor their session say it.
        limits: what a sender of `/audio` may do.
    """

    max_s: int = 6 * 3600
    idle_ttl_s: float = 900.0
    viewer_grace_s: float = 300.0
    speaker_grace_s: float = 60.0
    start_timeout_s: float = 180.0
    keep_s: float = 600.0
    poll_s: float = 5.0
    speech: SpeechSettings = field(default_factory=SpeechSettings)
    limits: AudioLimits = field(default_factory=AudioLimits)


# starting ──► ready ◄──► speaking ◄──► recovering
#     │          │            │             │
#     │          └────────────┴──► draining ┴──► stopped
#     └──► failed ◄── (from any but the ended ones)
#
# `recovering` is entered from `ready` too, and left for it. `stopped` and `failed` are the end. `ready` and `speaking` differ in
# whether speech is being heard, see `ManagedSession.state`.
NEXT: dict[SessionState, frozenset[SessionState]] = {
    SessionState.STARTING: frozenset({SessionState.READY, SessionState.DRAINING, SessionState.FAILED}),
    SessionState.READY: frozenset(
        {SessionState.SPEAKING, SessionState.RECOVERING, SessionState.DRAINING, SessionState.FAILED}
    ),
    SessionState.SPEAKING: frozenset(
        {SessionState.READY, SessionState.RECOVERING, SessionState.DRAINING, SessionState.FAILED}
    ),
    SessionState.RECOVERING: frozenset({SessionState.READY, SessionState.DRAINING, SessionState.FAILED}),
    SessionState.DRAINING: frozenset({SessionState.STOPPED, SessionState.FAILED}),
    SessionState.STOPPED: frozenset(),
    SessionState.FAILED: frozenset(),
}
ENDED = frozenset({SessionState.STOPPED, SessionState.FAILED})
RUNNING = frozenset({SessionState.READY, SessionState.SPEAKING, SessionState.RECOVERING})


class IllegalTransition(Exception):
    """The table does not allow this step."""


def step(current: SessionState, to: SessionState) -> SessionState:
    """Returns `to` when the table allows it, or when it is where the session already is. Raises IllegalTransition."""
    if to != current and to not in NEXT[current]:
        raise IllegalTransition(f"{current.value} cannot become {to.value}")
    return to


@dataclass(frozen=True)
class SessionRequest:
    """What a client asked for. `speaker` is the participant for whom the avatar speaks, `voice` who publishes the speech,
    `audio_source` how it comes: with `datastream` `speaker` sends it through the room, with `participant` its microphone is said.
    `rtmp_url` is secret. `key` names the caller whose session it is, `public_token` the token it was started with, if one was.
    `max_s` shortens the session's longest life. `record`: it is recorded from its first frame on, with `skip_idle` without idle
    seconds.
    """

    room: str
    avatar: AvatarSource
    picture: Picture
    engine: str | None = None
    connect_livekit: bool = True
    speaker: str | None = None
    voice: VoiceSource = VoiceSource.AGENT
    audio_source: AudioSource = AudioSource.HTTP
    rtmp_url: str | None = field(default=None, repr=False)
    wants_rtmp: bool = False
    publisher: PublisherMode = PublisherMode.AUTO
    captions: bool = True
    video_codec: VideoCodec = VideoCodec.VP8
    simulcast: bool = False
    key: str = ""
    webhook_url: str | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)
    conversation: ConversationRequest | None = None
    public_token: str = ""
    record: bool = False
    skip_idle: bool = False
    max_s: float | None = None
    speech: SpeechSettings | None = None
    """How its texts are spoken where a text does not say it."""
    avatar_settings: AvatarSettings = DEFAULTS
    library_avatar: str | None = None
    """The avatar of the library that `avatar` is the clip of."""
    avatar_voice: str | None = None
    """The voice of that avatar's settings."""

    @property
    def transparent(self) -> bool:
        """Whether the lower half of the avatar's video is the alpha of the upper one."""
        return self.avatar_settings.background == "transparent"


@dataclass(frozen=True)
class PlaybackSummary:
    """What is worth knowing of a session's audio path, also when that is gone."""

    position_s: float = 0.0
    buffered_s: float = 0.0
    segments: int = 0
    last_audio_at: float | None = None


@dataclass(eq=False)
class ManagedSession:
    """One session. `owner` is the task that runs it; `started` resolves when it is ready, or with what went wrong.

    `snapshot_at` is when its agent was asked last (monotonic), `refreshing` is held while it is asked.
    `lease` is None while it has no agent, `placed` says that it had one. `moved_at` are monotonic times.
    `adopted`: another process began it; `readable` is false when its stored order cannot be read. `progress` is what is known of
    its audio while `live` is not there. `talk` is its conversation, also after its end.

    The runner writes what happens to it; the manager what callers ask for (`owner`, `order`, a stop's `end_reason`, the snapshot
    after a call to the agent); failover its place (`lease`, `placed`, `moves`); the journal what it reads back. All others only
    read (`WRITERS` in `tests/architecture/test_house.py`).
    """

    session_id: str
    order: SessionRequest
    expires_at: float
    started: asyncio.Future[None]
    created_at: float = field(default_factory=time.time)
    ended_at: float | None = None
    adopted: bool = False
    readable: bool = True
    progress: Progress = field(default_factory=Progress)
    base_state: SessionState = SessionState.STARTING
    owner: asyncio.Task[None] | None = None
    lease: AgentLease | None = None
    placed: bool = False
    ingress: RoomIngress | None = None
    moves: int = 0
    moved_at: list[float] = field(default_factory=list)
    agent_lost_at: float | None = None
    live: SpeechPipeline | None = None
    talk: OpenedConversation | None = None
    final: PlaybackSummary = PlaybackSummary()
    snapshot: AgentSession | None = None
    snapshot_at: float = float("-inf")
    refreshing: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    changing_avatar: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    end_reason: str | None = None
    error: ProblemError | None = None

    def __post_init__(self) -> None:
        self.publisher_mode = self.order.publisher

    @property
    def identity(self) -> str:
        """The avatar's identity in the room."""
        return f"avatar-{self.session_id}"

    @property
    def state(self) -> SessionState:
        """`speaking` while something is heard."""
        if self.base_state is SessionState.READY and self.live is not None and self._speaking:
            return SessionState.SPEAKING
        return self.base_state

    @property
    def _speaking(self) -> bool:
        if self._by_room is not None:
            return self._by_room.state is SessionState.SPEAKING
        return self.live is not None and self.live.speaking

    @property
    def _by_room(self) -> AgentSession | None:
        """The agent's snapshot where the speech comes through the room, which only the agent sees."""
        return self.snapshot if self.order.audio_source.in_room else None

    @property
    def microphone(self) -> dict[str, Any]:
        """What is known of the microphone that the avatar says, as a field of the session's view; empty where there is none."""
        snapshot = self.snapshot
        if self.ended or snapshot is None or snapshot.microphone is None:
            return {}
        return {"microphone": snapshot.microphone.model_dump(mode="json", exclude_none=True)}

    @property
    def avatar_id(self) -> str | None:
        """The avatar that is shown; one that is not of the library is named by its bytes, once they are known."""
        shown = self.snapshot.avatar if self.snapshot is not None else None
        return self.order.library_avatar or (shown.avatar_id if shown is not None else self.order.avatar.avatar_id)

    @property
    def ended(self) -> bool:
        """Stopped or failed."""
        return self.base_state in ENDED

    @property
    def heard(self) -> PlaybackSummary:
        """Of now while the session runs, of its end afterwards."""
        live = self.live
        if live is None:
            return self.final
        if self._by_room is not None:
            playback, at = self._by_room.playback, self._by_room.last_audio_at
            return PlaybackSummary(
                playback.position_s,
                playback.buffered_s,
                playback.segments,
                datetime.fromisoformat(at).timestamp() if at else None,
            )
        return PlaybackSummary(live.position_s, live.backlog_s, live.segments, live.last_audio_at)

    def retire(self) -> None:
        """Frees the audio path and its buffers; the session stays readable."""
        self.final = replace(self.heard, buffered_s=0.0)
        self.progress = self.live.progress() if self.live is not None else self.progress
        self.live = None

    def note_loss(self, at: float, now: float) -> None:
        """The agent was lost at `at` (Unix time), `now` on the monotonic clock: the session moves."""
        self.moves += 1
        self.moved_at.append(now)
        self.agent_lost_at = at

    def running(self) -> SpeechPipeline:
        """The session's audio path. Raises ProblemError `session_ended`, or `session_conflict` while it is starting."""
        if self.live is not None and self.base_state in RUNNING:
            return self.live
        if self.base_state is SessionState.STARTING:  # also while this process takes it over from another
            raise ProblemError(
                ErrorCode.SESSION_CONFLICT, f"Session {self.session_id} is still starting.", retry_after_s=1
            )
        raise self.over()

    def speakable(self) -> SpeechPipeline:
        """`running`, for those who bring speech. Raises ProblemError `speech_elsewhere` where it comes through the room."""
        if self.order.audio_source is AudioSource.PARTICIPANT:
            raise ProblemError(
                ErrorCode.SPEECH_ELSEWHERE,
                f"The avatar of session {self.session_id} says what the microphone of {self.order.speaker!r} says "
                "(audio_source participant): let that one speak, or start another session.",
                value=self.order.speaker,
            )
        if self.order.audio_source is AudioSource.DATASTREAM:
            raise ProblemError(
                ErrorCode.SPEECH_ELSEWHERE,
                f"The speech of session {self.session_id} comes through its room, from {self.order.speaker!r} "
                "(audio_source datastream): let that one speak, or start another session.",
                value=self.order.speaker,
            )
        return self.running()

    def over(self) -> ProblemError:
        """The error for one who comes after the end."""
        return ProblemError(
            ErrorCode.SESSION_ENDED,
            f"Session {self.session_id} is {self.state.value} ({self.end_reason or 'ended'}): start another one.",
        )

    def view(self) -> dict[str, Any]:
        """Body of `GET /session/{id}`."""
        snapshot, heard = self.snapshot, self.heard
        return {
            "session_id": self.session_id,
            "state": self.state.value,
            "room": self.order.room,
            "avatar_identity": self.identity,
            "publisher": snapshot.publisher if snapshot else None,
            "transport": self.transport.model_dump(mode="json", exclude_none=True),
            "moves": self.moves,
            "agent_lost_at": iso(self.agent_lost_at),
            "avatar_id": self.avatar_id,
            "engine": snapshot.engine if snapshot else self.order.engine,
            "engine_note": snapshot.engine_note if snapshot else None,
            "fps": snapshot.fps if snapshot else self.order.picture.fps,
            "width": snapshot.width if snapshot else self.order.picture.width,
            "height": snapshot.height if snapshot else self.order.picture.height,
            "started_at": iso(self.created_at),
            "expires_at": iso(self.expires_at),
            "ended_at": iso(self.ended_at),
            "end_reason": self.end_reason,
            "last_audio_at": iso(heard.last_audio_at),
            "viewers": snapshot.viewers if snapshot and not self.ended else 0,
            "playback": {
                "position_s": round(heard.position_s, 3),
                "buffered_s": round(heard.buffered_s, 3),
                "segments": heard.segments,
            },
            "diagnosis": self.diagnosis.model_dump(mode="json", exclude_none=True),
            **self.microphone,
            "error": Problem.of(self.error).model_dump(mode="json", exclude_none=True) if self.error else None,
        }

    @property
    def funnel(self) -> list[dict[str, Any]]:
        """Counts of each stage from PCM to frame, as the agent last reported them; empty before that."""
        return [stage.model_dump(mode="json") for stage in self.snapshot.funnel] if self.snapshot else []

    @property
    def transport(self) -> Transport:
        """How media leave; none do while there is no agent."""
        if self.snapshot is not None and self.base_state is not SessionState.RECOVERING:
            return self.snapshot.transport
        return Transport(mode=self.publisher_mode, rung="none")

    def diagnosed(self, agents: Diagnosis) -> Diagnosis:
        """The agent's diagnosis, unless PCM is dropped here and that comes first along `DiagnosisCode`."""
        codes = list(DiagnosisCode)
        dropping = DiagnosisCode.DROPPING_AFTER_CLEAR
        if self.live is None or not self.live.dropping or codes.index(agents.code) < codes.index(dropping):
            return agents
        text = (
            "PCM is dropped since the last clear, for it may be the rest of what was interrupted: send audio.start before new "
            "speech, or pause for 300 ms. A live source is heard again after a second."
        )
        return Diagnosis(code=dropping, message=text)

    @property
    def diagnosis(self) -> Diagnosis:
        """The agent's, or that it has not said any; that PCM is dropped after a clear, which the agent cannot know."""
        if self.snapshot is not None:
            return self.diagnosed(self.snapshot.diagnosis)
        return Diagnosis(code=DiagnosisCode.ROOM_NOT_JOINED, message="The agent has not joined the room yet.")


def iso(at: float | None) -> str | None:
    """Unix time as ISO 8601 UTC with milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def publish_state(events: EventBus, session: ManagedSession, to: SessionState, reason: str | None = None) -> None:
    """Steps to `to` and publishes it: as an event, and to the sender unless none can have connected yet.

    Raises IllegalTransition when the table does not allow it.
    """
    known = session.base_state is not SessionState.STARTING
    session.base_state = step(session.base_state, to)
    id = events.publish(session.session_id, STATE, {"state": to.value, "reason": reason})
    if known and session.live is not None:
        session.live.outbox.put(StateChanged(id=id, state=to.value, reason=reason))


def ingress_attributes(session: ManagedSession, live: SpeechPipeline) -> dict[str, str] | None:
    """Attributes of the avatar while it comes by ingress and cannot set its own; None while it does not."""
    if session.ingress is None or live.side is None or live.side.liveness.publisher != "rtmp":
        return None
    attributes = {"avatar.state": "speaking" if live.speaking else "idle"}
    if session.order.transparent:
        attributes[ALPHA] = ALPHA_BELOW
    if session.order.speaker:
        attributes["lk.publish_on_behalf"] = session.order.speaker
    return attributes
