"""What the lifecycle of sessions needs to know, whoever configured it."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.audio.limits import AudioLimits


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
        voice: voice of `/speak` when the request names none.
        limits: what a sender of `/audio` may do.
    """

    max_s: int = 6 * 3600
    idle_ttl_s: float = 900.0
    viewer_grace_s: float = 300.0
    speaker_grace_s: float = 60.0
    start_timeout_s: float = 180.0
    keep_s: float = 600.0
    poll_s: float = 5.0
    voice: str | None = None
    limits: AudioLimits = field(default_factory=AudioLimits)
