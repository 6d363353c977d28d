"""Messages by which the orchestrator has its agents prepare the avatars of its library, and uploads clips that they lack.

`POST /avatars/prepare` of the agent answers with lines of JSON, one `PrepareLine` each: progress while the work lasts, then what
came of it. `GET /avatars/{avatar_id}/source` answers with the clip's bytes.
"""

from __future__ import annotations

from pydantic import Field

from musetalk_agent.protocol.avatar_settings import AvatarSettings
from musetalk_agent.protocol.http import Answer, AvatarReport, AvatarSource, Picture, Strict
from musetalk_agent.protocol.problem_body import Problem

PREPARE_LINES = "application/x-ndjson"
PREPARE_EVERY_S = 2.0
"""Longest time between two lines, in seconds: a reader that waits longer knows that the connection is dead."""


class AgentPrepareRequest(Strict):
    """`POST /avatars/prepare`: the clip's bundle at this picture, with the engine's artefacts for these settings.

    `clip_url` is fetched in place of `avatar`, whatever kind of clip it is. `clip_of` is the avatar that it is to be a clip of:
    another person, or another framing, is `clip_mismatch`.
    """

    avatar: AvatarSource = AvatarSource()
    clip_url: str | None = Field(default=None, max_length=4096, repr=False)
    picture: Picture = Picture()
    avatar_settings: AvatarSettings = AvatarSettings()
    engine: str | None = None
    clip_of: AvatarSource | None = None


class PreparedAvatar(Answer):
    """What was prepared. `report.avatar_id` names the clip's bytes; `poster` is a frame of it, JPEG in base64."""

    report: AvatarReport
    poster: str = Field(max_length=4 << 20)


class PrepareLine(Answer):
    """One line: `progress` (0 … 1), or the end: `prepared`, or the `problem` that ended it."""

    progress: float | None = None
    prepared: PreparedAvatar | None = None
    problem: Problem | None = None
