"""The funnel's verdict: why the lips do not move, in the order in which causes are told."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel


class DiagnosisCode(StrEnum):
    """When several hold, the first along this list is told."""

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
