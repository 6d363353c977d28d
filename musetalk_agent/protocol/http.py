"""Bodies of the agent's HTTP surface, which only the orchestrator calls. Times are ISO 8601 UTC, durations end in `_s`."""

from __future__ import annotations

import struct
from datetime import datetime
from enum import IntEnum, StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from musetalk_agent.protocol.avatar_settings import AvatarSettings


class DiagnosisCode(StrEnum):
    """When several hold, the first in this list is reported."""

    ROOM_NOT_JOINED = "room_not_joined"
    WEIGHTS_MISSING = "weights_missing"
    NO_FACE_IN_AVATAR = "no_face_in_avatar"
    WRONG_FORMAT_SUSPECTED = "wrong_format_suspected"
    DROPPING_AFTER_CLEAR = "dropping_after_clear"
    NO_AUDIO = "no_audio"
    SILENT_AUDIO = "silent_audio"
    ENGINE_FAILING = "engine_failing"
    ENGINE_SLOW = "engine_slow"
    RTMP_FALLBACK_ACTIVE = "rtmp_fallback_active"
    TRACK_NOT_SUBSCRIBED = "track_not_subscribed"
    OK = "ok"


class Suspicion(StrEnum):
    """What PCM that is not int16 little endian mono at the declared rate looks like."""

    FLOAT32 = "float32"
    BYTE_SWAPPED = "byte_swapped"
    STEREO = "stereo"
    WRONG_RATE = "wrong_rate"
    COMPRESSED = "compressed"
    PCM24 = "pcm24"
    PCM32 = "pcm32"
    PCM8 = "pcm8"
    MULAW = "mulaw"
    ALAW = "alaw"


class Diagnosis(BaseModel):
    """One stable code and one sentence."""

    code: DiagnosisCode
    message: str
    suspicion: Suspicion | None = None


class FunnelStage(BaseModel):
    """One stage of the path from PCM to pixels. `count` is in the stage's own unit; times are ISO 8601 UTC."""

    stage: str
    count: int
    last_at: str | None = None
    last_error: str | None = None


FUNNEL_STAGES = ("audio_in", "samples", "features", "patches", "composed", "published", "acknowledged")


FPS_RANGE = (15, 60)
DEFAULT_SIDE, DEFAULT_PIXELS = 1280, 1280 * 720
"""Bounds of a frame whose size is left to the clip: its longer side, and its area."""
MAX_SIDE, MAX_PIXELS = 1920, 1920 * 1080
"""The same where a size is asked for, in either orientation: 1920×1080 and 1080×1920 are the largest 16:9 frames."""
DEMO_AVATAR_ID = "demo"
"""The avatar that ships with the agent."""


class SessionState(StrEnum):
    """State of a session, reported by `GET /session/{id}`. `recovering`: its agent was lost, and it moves to another one."""

    STARTING = "starting"
    READY = "ready"
    SPEAKING = "speaking"
    RECOVERING = "recovering"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Strict(BaseModel):
    """A request body: an unknown field is an error that names it."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """An answer of the agent, or a part of one. Its numbers are finite: JSON has no others."""

    model_config = ConfigDict(allow_inf_nan=False)


def _is_time(value: str) -> str:
    at = datetime.fromisoformat(value)
    if at.tzinfo is None or not 1970 <= at.year < 9999:
        raise ValueError(f"{value!r} is not a time of this age with a zone")
    return value


Timestamp = Annotated[str, AfterValidator(_is_time)]
"""ISO 8601, with a zone."""


class AvatarSource(Strict):
    """Where an avatar comes from. When several are given, `avatar_id` wins over the zip, the zip over the video, which is
    tried when the zip cannot be used."""

    frames_zip_url: str | None = Field(default=None, max_length=4096)
    idle_video_url: str | None = Field(default=None, max_length=4096)
    avatar_id: str | None = Field(default=None, max_length=128)

    @property
    def empty(self) -> bool:
        """No source is named at all."""
        return not (self.frames_zip_url or self.idle_video_url or self.avatar_id)


class Picture(Strict):
    """Size and rate of the published video; None leaves it to the clip (even, within `DEFAULT_SIDE` and `DEFAULT_PIXELS`)."""

    fps: int = Field(default=25, ge=FPS_RANGE[0], le=FPS_RANGE[1])
    width: int | None = Field(default=None, ge=64, le=MAX_SIDE)
    height: int | None = Field(default=None, ge=64, le=MAX_SIDE)

    @field_validator("height")
    @classmethod
    def _within_pixels(cls, height: int | None, info: ValidationInfo) -> int | None:
        width = info.data.get("width")
        if width and height and width * height > MAX_PIXELS:
            raise ValueError(
                f"{width}×{height} has {width * height} pixels; at most {MAX_PIXELS} are published, "
                "as 1920×1080 or 1080×1920 have"
            )
        return height


class PublisherMode(StrEnum):
    """Which way media take: `auto` is WebRTC with a fallback, the others hold to one way."""

    AUTO = "auto"
    WEBRTC = "webrtc"
    RTMP = "rtmp"


class PublisherRequest(Strict):
    """`POST /session/{id}/publisher`."""

    mode: PublisherMode


class VoiceSource(StrEnum):
    """Who publishes the speech. With `orchestrator` the agent publishes video only, and reports when its audio is due."""

    AGENT = "agent"
    ORCHESTRATOR = "orchestrator"


class AudioSource(StrEnum):
    """Where the speech comes from: `/audio` and `/speak`, or through the room, from an agent of livekit-agents (`datastream`) or
    from a participant's microphone (`participant`).
    """

    HTTP = "http"
    DATASTREAM = "datastream"
    PARTICIPANT = "participant"

    @property
    def in_room(self) -> bool:
        """It comes through the room: only the agent sees it."""
        return self is not AudioSource.HTTP


class VideoCodec(StrEnum):
    """How the video is encoded for a room. `auto` is what most viewers decode in hardware."""

    VP8 = "vp8"
    H264 = "h264"
    AUTO = "auto"

    @property
    def chosen(self) -> VideoCodec:
        """`vp8` or `h264` (docs/decisions/0022-video-codec.md)."""
        return VideoCodec.H264 if self is VideoCodec.AUTO else self


class RtmpTarget(Strict):
    """Where RTMP goes.

    `url` holds the stream key and is secret. `ingress`: it leads into the session's own room, as a participant of the avatar's
    identity, so that it and WebRTC exclude each other. `beside`: it runs all the time, beside WebRTC.
    """

    url: str = Field(min_length=8, max_length=2048, repr=False)
    ingress: bool = False
    beside: bool = False


class AgentAvatarRequest(Strict):
    """`POST /session/{id}/avatar` of the agent: another avatar in the session's own size and rate."""

    avatar: AvatarSource
    avatar_settings: AvatarSettings = AvatarSettings()


class AgentActionRequest(AgentAvatarRequest):
    """`POST /session/{id}/action` of the agent: `avatar` is a clip of the avatar that is shown; none ends what plays.

    `loop`: it plays until something else is asked for, else once.
    """

    loop: bool = False


class FilmOptions(Strict):
    """How a session is recorded: the film's size in pixels (even; None: the session's own), and whether idle time is left out.

    The parts of a film have one size; frames of another are scaled to it.
    """

    width: int | None = Field(default=None, ge=64, le=MAX_SIDE, multiple_of=2)
    height: int | None = Field(default=None, ge=64, le=MAX_SIDE, multiple_of=2)
    skip_idle: bool = False


class RecordingState(StrEnum):
    """Whether a session is recorded. `none`: it has no film."""

    NONE = "none"
    RECORDING = "recording"
    STOPPED = "stopped"


class AgentRecordingRequest(FilmOptions):
    """`POST /session/{id}/recording` of the agent."""

    state: Literal[RecordingState.RECORDING, RecordingState.STOPPED]


FILM_LOG = "X-Film-Log"
"""Header of the agent's answer: the name of the log that its entries are numbered in."""
FILM_ENTRY = struct.Struct("<QBI")
"""Head of each entry in the body of `GET /session/{id}/recording` of the agent: number, `FilmEntry`, bytes that follow."""


FILM_CLOCK = struct.Struct("<dd")
"""Payload of `FilmEntry.CLOCK`: from which second of the part on it holds, and when its second 0 is heard (the agent's monotonic
seconds)."""
FILM_SPOKEN = struct.Struct("<dId")
"""Payload of `FilmEntry.SPOKEN`: from that time on (the agent's monotonic seconds) this segment of speech is heard, from that
second of it on, without a gap up to the next such entry or the segment's end."""


class FilmEntry(IntEnum):
    """What an entry is. A part is a header, its fragments and an end. `CLOSED` is the last entry of a log.

    `HEADER` is `ftyp` and `moov`, `FRAGMENT` `moof` and `mdat`; `END` is JSON, `FilmPart`. `CLOCK` and `SPOKEN` say which speech
    is in the fragments, and come before those that they hold for.
    """

    HEADER = 0
    FRAGMENT = 1
    END = 2
    CLOSED = 3
    CLOCK = 4
    SPOKEN = 5


class FilmPosition(Answer):
    """How many entries a session's log has, and its name."""

    log_id: str
    entries: int


class FilmPart(Answer):
    """What became of a part: frames that are in it, frames and blocks of audio that the encoder did not take in time."""

    frames: int = 0
    dropped: int = 0
    lost_audio: int = 0


class AgentStartRequest(Strict):
    """`POST /session/start` of the agent.

    `probe_token` joins the same room, hidden and under another identity, to find out whether WebRTC is possible again.
    `livekit_agent` is the identity of the participant whose speech comes through the room, by LiveKit's avatar protocol;
    `microphone_of` is that of the participant whose microphone the avatar says.
    `film`: the session is recorded from its first frame on.
    `video_codec` and `simulcast` are how a room gets the video; streams (RTMP, WHIP) are H.264 in one size whatever they say.
    """

    session_id: str = Field(min_length=1, max_length=64)
    room: str = Field(min_length=1, max_length=256)
    livekit_url: str
    livekit_token: str = Field(repr=False)
    avatar: AvatarSource
    picture: Picture = Picture()
    avatar_settings: AvatarSettings = AvatarSettings()
    engine: str | None = None
    connect_livekit: bool = True
    voice: VoiceSource = VoiceSource.AGENT
    livekit_agent: str | None = Field(default=None, min_length=1, max_length=256)
    microphone_of: str | None = Field(default=None, min_length=1, max_length=256)
    rtmp: RtmpTarget | None = None
    probe_token: str | None = Field(default=None, repr=False)
    captions: bool = True
    video_codec: VideoCodec = VideoCodec.VP8
    simulcast: bool = False
    publisher_mode: PublisherMode = PublisherMode.AUTO
    max_duration_s: int = Field(default=6 * 3600, ge=1)
    backlog_s: int = Field(default=120, ge=1, le=600)
    film: FilmOptions | None = None


class AvatarWarning(Answer):
    """Something about the clip that works but will not look its best."""

    code: str
    message: str


class AvatarReport(Answer):
    """Quality report of a prepared avatar.

    `face_px` is the median width of the face mesh in the clip's pixels, `motion_px` the median movement of the nose bridge from
    frame to frame, `closed_mouth_frames` how many frames show closed lips. No mouth is drawn on `frames_without_face` and on
    `frames_mouth_hidden`, where something covers it.
    """

    avatar_id: str
    frames: int
    width: int
    height: int
    fps: int
    cached: bool = False
    face_px: int = 0
    motion_px: float = 0.0
    closed_mouth_frames: int = 0
    frames_without_face: list[int] = []
    frames_mouth_hidden: list[int] = []
    still: bool = False
    warnings: list[AvatarWarning] = []


class TrackInfo(Answer):
    """A published track as the SFU knows it."""

    kind: str
    sid: str
    muted: bool


class Playback(Answer):
    """Where the voice is: seconds played since the session began, seconds waiting, segments opened."""

    position_s: float = 0.0
    buffered_s: float = 0.0
    segments: int = 0


class Transport(Answer):
    """How media leave.

    `rung` is the transport in use (`livekit`, `whip`, `rtmp`; `none` while it changes), `reason` why it is not
    the first one. `adaptation` is the step of the adaptation, 0 for full quality; `video_codec` is the one in use; `beside` is the
    state of a stream beside the room (`live`, `retrying`).
    """

    mode: PublisherMode = PublisherMode.AUTO
    rung: str = "livekit"
    since: str | None = None
    reason: str | None = None
    changes: int = 0
    adaptation: int = 0
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    bitrate: int | None = None
    video_codec: str | None = None
    beside: str | None = None


class MicrophoneState(StrEnum):
    """What comes of the participant's microphone.

    `unreachable`: the agent is not in the room by WebRTC, and hears nothing. `waiting`: the participant is not in the room.
    `unpublished`: it publishes no microphone. `connecting`: the track is subscribed, and nothing came of it yet.
    """

    UNREACHABLE = "unreachable"
    WAITING = "waiting"
    UNPUBLISHED = "unpublished"
    CONNECTING = "connecting"
    MUTED = "muted"
    LIVE = "live"


class Microphone(Answer):
    """The microphone that the avatar says.

    `message` says in one sentence what is waited for, or that it is heard. `delay_ms` is what waits at the agent now;
    `left_out_ms` and `stretched_ms` are how much was left out of it and put into its silence to hold that, `late_ms` how much
    came too late to be said, since the session's agent began.
    """

    participant: str
    state: MicrophoneState
    message: str
    delay_ms: int | None = None
    left_out_ms: int = 0
    stretched_ms: int = 0
    late_ms: int = 0


class AgentSession(Answer):
    """A session as its agent sees it (`POST /session/start`, `GET /session/{id}`, one entry of `GET /debug`).

    `speaker_present`: whether the participant whose speech comes through the room is there; None for sessions whose speech comes
    over `/audio`.
    """

    session_id: str
    state: SessionState
    room: str
    publisher: str
    engine: str
    engine_note: str | None = None
    fps: int
    width: int
    height: int
    avatar: AvatarReport | None = None
    viewers: int = 0
    playback: Playback = Playback()
    diagnosis: Diagnosis
    funnel: list[FunnelStage] = []
    tracks: list[TrackInfo] = []
    transport: Transport = Transport()
    started_at: str
    last_audio_at: Timestamp | None = None
    speaker_present: bool | None = None
    microphone: Microphone | None = None
    error: dict[str, Any] | None = None
    statistics: dict[str, float | int | str | None] = {}


class CapacityLimit(StrEnum):
    """What bounds how many sessions an agent holds; when several are the least, the first in this list is named.

    `setting` is `AGENT_MAX_SESSIONS`; with it only the card may still say less.
    """

    SETTING = "setting"
    CARD = "card"
    PROCESSOR = "processor"
    MEMORY = "memory"
    PACING = "pacing"


class Capacity(Answer):
    """How many sessions the agent holds and could hold.

    `limited_by` is what `sessions_max` comes from; the others are how many each limit would allow, None where it sets none. They
    are for sessions like the last one that was taken, and follow what is measured; `sessions` may be more than they say now.
    """

    sessions: int
    sessions_max: int
    limited_by: CapacityLimit | None = None
    card: int | None = None
    processor: int | None = None
    memory: int | None = None
    pacing: int | None = None
    setting: int | None = None


WARMING = "warming"
"""An agent's `status` before its engines have been made."""


class AgentHealth(Answer):
    """`GET /health` of the agent: 200 when warm, else 503 with the same body.

    `status` is `ok`, `warming`, `draining` or `engine_failed`.
    """

    status: str
    version: str
    engine: str
    engine_note: str | None = None
    capacity: Capacity
    draining: bool = False
    instance: str = ""
    """Another one for each process: it identifies the agent among several behind one address."""


class FileState(Answer):
    """One file of the models folder. `verified` is None where no checksum is known or it was not checked yet."""

    exists: bool
    bytes: int | None = None
    verified: bool | None = None


class AgentDebug(Answer):
    """`GET /debug` of the agent, which `/debug/musetalk` hands through."""

    engine: str
    engine_note: str | None = None
    engine_figures: dict[str, Any] = {}
    device: str
    config_path: str | None = None
    files: dict[str, FileState] = {}
    unet_config: dict[str, Any] | None = None
    sessions: list[AgentSession] = []


def _installed() -> str:
    try:
        return version("musetalk-livekit")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


VERSION = _installed()
