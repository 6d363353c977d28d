"""The agent's errors. Every one is a `ProblemError` with a fixed code, raised near its cause and reported to the caller unchanged.

AgentError
├── AvatarError            the clip cannot be used; the subclass's code says why
│   ├── AvatarUrlForbidden, AvatarFetchFailed, AvatarTooLarge
│   ├── AvatarUnsafeArchive, AvatarUndecodable, AvatarSizesDiffer, AvatarEmpty
│   └── NoFaceInAvatar, AvatarNotFound, ClipMismatch
├── EngineUnknown, EngineUnavailable (EngineOutOfMemory), EngineFailed, WeightsMissing, WeightsInvalid
├── SessionNotFound, SessionConflict, SessionEnded, AtCapacity, Draining, NotReady
├── DiskFull               an avatar cannot be written
├── PublishFailed          the room could not be joined or published to
├── PublisherUnavailable   the session has no transport of that kind
├── RtmpUrlForbidden       the RTMP address may not be pushed to
└── RecordingFailed        the film cannot be recorded
"""

from __future__ import annotations

from typing import ClassVar

from musetalk_agent.protocol.problems import ErrorCode, ProblemError


class AgentError(ProblemError):
    """Base of the agent's errors; subclasses fix `error_code`. Keyword arguments are those of `ProblemError`."""

    error_code: ClassVar[ErrorCode] = ErrorCode.INTERNAL

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        limit: str | int | float | None = None,
        value: str | int | float | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(self.error_code, detail, field=field, limit=limit, value=value, retry_after_s=retry_after_s)


class AvatarError(AgentError):
    """The avatar cannot be used."""

    error_code = ErrorCode.AVATAR_UNDECODABLE


class AvatarUrlForbidden(AvatarError):
    """The address may not be fetched: scheme, credentials, or a host that is not public."""

    error_code = ErrorCode.AVATAR_URL_FORBIDDEN


class AvatarFetchFailed(AvatarError):
    """The host did not answer, answered with an error, or sent less than it promised."""

    error_code = ErrorCode.AVATAR_FETCH_FAILED


class AvatarTooLarge(AvatarError):
    """Bytes, entries, pixels, frames or time pass a limit."""

    error_code = ErrorCode.AVATAR_TOO_LARGE


class AvatarUnsafeArchive(AvatarError):
    """The zip has a path, a link or a ratio that no honest archive has."""

    error_code = ErrorCode.AVATAR_UNSAFE_ARCHIVE


class AvatarUndecodable(AvatarError):
    """The bytes are not the frames or the video they should be."""

    error_code = ErrorCode.AVATAR_UNDECODABLE


class AvatarSizesDiffer(AvatarError):
    """The frames of the zip are not all of one size."""

    error_code = ErrorCode.AVATAR_SIZES_DIFFER


class AvatarEmpty(AvatarError):
    """No frame in it."""

    error_code = ErrorCode.AVATAR_EMPTY


class NoFaceInAvatar(AvatarError):
    """Fewer than half of the frames show a face."""

    error_code = ErrorCode.NO_FACE_IN_AVATAR


class AvatarNotFound(AvatarError):
    """No prepared avatar has this id."""

    error_code = ErrorCode.AVATAR_NOT_FOUND


class ClipMismatch(AvatarError):
    """The clip shows another person than the avatar, or at another framing."""

    error_code = ErrorCode.CLIP_MISMATCH


class EngineUnknown(AgentError):
    """No engine has this name."""

    error_code = ErrorCode.ENGINE_UNKNOWN


class EngineUnavailable(AgentError):
    """The engine is known but cannot run here."""

    error_code = ErrorCode.ENGINE_UNAVAILABLE


class EngineOutOfMemory(EngineUnavailable):
    """The engine's device has no memory for it, or for one more avatar."""


class EngineFailed(AgentError):
    """The engine's device failed under running sessions."""

    error_code = ErrorCode.ENGINE_FAILED


class WeightsMissing(AgentError):
    """A model file the engine needs is not there."""

    error_code = ErrorCode.WEIGHTS_MISSING


class WeightsInvalid(AgentError):
    """A model file is there, but its configuration, keys or shapes are not those of the model."""

    error_code = ErrorCode.WEIGHTS_INVALID


class SessionNotFound(AgentError):
    """No session has this id."""

    error_code = ErrorCode.SESSION_NOT_FOUND


class SessionConflict(AgentError):
    """A session with this id is already running."""

    error_code = ErrorCode.SESSION_CONFLICT


class SessionEnded(AgentError):
    """The session is over."""

    error_code = ErrorCode.SESSION_ENDED


class AtCapacity(AgentError):
    """No room for another session now."""

    error_code = ErrorCode.AT_CAPACITY


class NotReady(AgentError):
    """The engines are not started yet."""

    error_code = ErrorCode.NOT_READY


class DiskFull(AgentError):
    """No room on the disk for an avatar."""

    error_code = ErrorCode.DISK_FULL


class Draining(AgentError):
    """The process shuts down."""

    error_code = ErrorCode.DRAINING


class PublishFailed(AgentError):
    """The room could not be joined, or a track not published."""

    error_code = ErrorCode.LIVEKIT_UNAVAILABLE


class PublisherUnavailable(AgentError):
    """The session has no target for this way to publish."""

    error_code = ErrorCode.PUBLISHER_UNAVAILABLE


class RtmpUrlForbidden(AgentError):
    """The RTMP address may not be pushed to: scheme, credentials, no stream key, or a host that may not be reached."""

    error_code = ErrorCode.RTMP_URL_FORBIDDEN


class RecordingFailed(AgentError):
    """The film cannot be recorded here now."""

    error_code = ErrorCode.RECORDING_UNAVAILABLE
