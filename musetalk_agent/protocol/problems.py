"""Errors on the wire: one stable code each, sent as RFC 9457 `application/problem+json`.

Both services raise `ProblemError` (or a subclass that fixes the code) close to the cause; the HTTP layer turns it into a
`problem_body.Problem` in one place. A code never changes its meaning; `STATUS` is the HTTP status it travels under.

This module needs no pydantic: each decoder process loads it, and pydantic was half of its start.
"""

from __future__ import annotations

from enum import StrEnum

MEDIA_TYPE = "application/problem+json"


class ErrorCode(StrEnum):
    """Every stable error code of the HTTP and WebSocket surface."""

    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    INVALID_REQUEST = "invalid_request"
    SESSION_NOT_FOUND = "session_not_found"
    SESSION_ENDED = "session_ended"
    SESSION_CONFLICT = "session_conflict"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    AT_CAPACITY = "at_capacity"
    AGENT_UNAVAILABLE = "agent_unavailable"
    LIVEKIT_UNAVAILABLE = "livekit_unavailable"
    NOT_READY = "not_ready"
    INTERNAL = "internal_error"
    ENGINE_UNKNOWN = "engine_unknown"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    ENGINE_FAILED = "engine_failed"
    WEIGHTS_MISSING = "weights_missing"
    WEIGHTS_INVALID = "weights_invalid"
    VOICE_UNAVAILABLE = "voice_unavailable"
    VOICE_UNKNOWN = "voice_unknown"
    VOICE_UNAUTHORIZED = "voice_unauthorized"
    VOICE_QUOTA_EXCEEDED = "voice_quota_exceeded"
    VOICE_TIMEOUT = "voice_timeout"
    TTS_FAILED = "tts_failed"
    AVATAR_MISSING = "avatar_missing"
    AVATAR_NOT_FOUND = "avatar_not_found"
    AVATAR_IN_USE = "avatar_in_use"
    CLIP_MISMATCH = "clip_mismatch"
    CLIP_NOT_FOUND = "clip_not_found"
    AVATAR_URL_FORBIDDEN = "avatar_url_forbidden"
    AVATAR_FETCH_FAILED = "avatar_fetch_failed"
    AVATAR_TOO_LARGE = "avatar_too_large"
    AVATAR_UNSAFE_ARCHIVE = "avatar_unsafe_archive"
    AVATAR_UNDECODABLE = "avatar_undecodable"
    AVATAR_SIZES_DIFFER = "avatar_sizes_differ"
    AVATAR_EMPTY = "avatar_empty"
    NO_FACE_IN_AVATAR = "no_face_in_avatar"
    INVALID_MESSAGE = "invalid_message"
    MESSAGE_TOO_LARGE = "message_too_large"
    BODY_TIMEOUT = "body_timeout"
    BACKLOG_EXCEEDED = "backlog_exceeded"
    RATE_EXCEEDED = "rate_exceeded"
    SAMPLE_RATE_CHANGED = "sample_rate_changed"
    REPLACED = "replaced"
    IDLE_TIMEOUT = "idle_timeout"
    FORBIDDEN = "forbidden"
    ORIGIN_FORBIDDEN = "origin_forbidden"
    MINUTES_EXHAUSTED = "minutes_exhausted"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    SESSION_ELSEWHERE = "session_elsewhere"
    SPEECH_ELSEWHERE = "speech_elsewhere"
    CONVERSATION_UNAVAILABLE = "conversation_unavailable"
    PUBLISHER_UNAVAILABLE = "publisher_unavailable"
    RECORDING_UNAVAILABLE = "recording_unavailable"
    RECORDING_NOT_FOUND = "recording_not_found"
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"
    RTMP_URL_FORBIDDEN = "rtmp_url_forbidden"
    WEBHOOK_URL_FORBIDDEN = "webhook_url_forbidden"
    DRAINING = "draining"
    DISK_FULL = "disk_full"
    STORE_UNAVAILABLE = "store_unavailable"
    RENDER_NOT_FOUND = "render_not_found"
    RENDER_NOT_DONE = "render_not_done"
    RENDER_FAILED = "render_failed"
    RENDERS_UNAVAILABLE = "renders_unavailable"
    AUDIO_URL_FORBIDDEN = "audio_url_forbidden"
    AUDIO_FETCH_FAILED = "audio_fetch_failed"
    AUDIO_UNREADABLE = "audio_unreadable"
    VIDEO_URL_FORBIDDEN = "video_url_forbidden"
    VIDEO_FETCH_FAILED = "video_fetch_failed"
    VIDEO_UNREADABLE = "video_unreadable"
    VIDEO_TOO_LONG = "video_too_long"
    NO_FACE_IN_VIDEO = "no_face_in_video"
    CAPTIONS_UNAVAILABLE = "captions_unavailable"
    SPEAKER_NOT_FOUND = "speaker_not_found"


STATUS: dict[ErrorCode, int] = {
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.SESSION_NOT_FOUND: 404,
    ErrorCode.AVATAR_NOT_FOUND: 404,
    ErrorCode.AVATAR_IN_USE: 409,
    ErrorCode.CLIP_NOT_FOUND: 404,
    ErrorCode.RENDER_NOT_FOUND: 404,
    ErrorCode.RENDER_NOT_DONE: 409,
    ErrorCode.RENDERS_UNAVAILABLE: 503,
    ErrorCode.SESSION_ENDED: 409,
    ErrorCode.SESSION_CONFLICT: 409,
    ErrorCode.IDEMPOTENCY_CONFLICT: 409,
    ErrorCode.AT_CAPACITY: 503,
    ErrorCode.AGENT_UNAVAILABLE: 503,
    ErrorCode.LIVEKIT_UNAVAILABLE: 503,
    ErrorCode.NOT_READY: 503,
    ErrorCode.VOICE_UNAVAILABLE: 503,
    ErrorCode.ENGINE_UNAVAILABLE: 503,
    ErrorCode.ENGINE_FAILED: 503,
    ErrorCode.TTS_FAILED: 502,
    ErrorCode.VOICE_UNAUTHORIZED: 502,
    ErrorCode.VOICE_QUOTA_EXCEEDED: 502,
    ErrorCode.VOICE_TIMEOUT: 504,
    ErrorCode.INTERNAL: 500,
    ErrorCode.MESSAGE_TOO_LARGE: 413,
    ErrorCode.BODY_TIMEOUT: 408,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.ORIGIN_FORBIDDEN: 403,
    ErrorCode.MINUTES_EXHAUSTED: 403,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.QUOTA_EXCEEDED: 429,
    ErrorCode.SESSION_ELSEWHERE: 421,
    ErrorCode.SPEECH_ELSEWHERE: 409,
    ErrorCode.CONVERSATION_UNAVAILABLE: 503,
    ErrorCode.PUBLISHER_UNAVAILABLE: 409,
    ErrorCode.RECORDING_UNAVAILABLE: 503,
    ErrorCode.RECORDING_NOT_FOUND: 404,
    ErrorCode.RANGE_NOT_SATISFIABLE: 416,
    ErrorCode.DRAINING: 503,
    ErrorCode.DISK_FULL: 503,
    ErrorCode.STORE_UNAVAILABLE: 503,
}
"""HTTP status of a code; codes not listed are 422, the request's own fault."""


class ProblemError(Exception):
    """An error that is reported to the caller under a stable code.

    Args:
        code: what went wrong, for programs.
        detail: one sentence for people, with the value that was wrong and what to do.
        field: name of the request field at fault, if one is.
        limit: the limit that was passed, if one was.
        value: the offending value (never a secret).
        retry_after_s: seconds after which the same call may succeed (sent as `Retry-After`).
    """

    def __init__(
        self,
        code: ErrorCode,
        detail: str,
        *,
        field: str | None = None,
        limit: str | int | float | None = None,
        value: str | int | float | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.field = field
        self.limit = limit
        self.value = value
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """HTTP status this error travels under."""
        return STATUS.get(self.code, 422)
