"""The stored record of an avatar: its clips, their state, and its settings."""

from __future__ import annotations

import hashlib
import re
import secrets
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from musetalk_agent.protocol.action_marks import IDLE
from musetalk_agent.protocol.avatar_settings import AvatarSettings
from musetalk_agent.protocol.http import AvatarReport, Strict
from musetalk_agent.protocol.problem_body import Problem

AVATAR_ID = re.compile(r"ava_[0-9a-f]{24}")
NAME_CHARACTERS = 120
URL_CHARACTERS = 4096
VOICE_CHARACTERS = 128


class AvatarState(StrEnum):
    """`preparing` → `ready` or `failed`. A change that needs other artefacts is `preparing` again."""

    PREPARING = "preparing"
    READY = "ready"
    FAILED = "failed"


class ShownSettings(AvatarSettings):
    """The settings of an avatar: how it is shown, and the voice of texts spoken with it."""

    voice: str | None = Field(default=None, min_length=1, max_length=VOICE_CHARACTERS)

    @property
    def mouth(self) -> AvatarSettings:
        """What the agent gets."""
        return AvatarSettings.model_validate(self.model_dump(exclude={"voice"}))

    def over(self, base: ShownSettings) -> ShownSettings:
        """These, and where a field was not given those of `base`."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were given."""
        return self.model_dump(mode="json", include=self.model_fields_set)


class AvatarOrder(Strict):
    """Body of `POST /avatars` as JSON."""

    url: str = Field(min_length=8, max_length=URL_CHARACTERS)
    name: str | None = Field(default=None, min_length=1, max_length=NAME_CHARACTERS)
    settings: ShownSettings = ShownSettings()


class ClipOrder(Strict):
    """Body of `PUT /avatars/{avatar_id}/clips/{name}` as JSON."""

    url: str = Field(min_length=8, max_length=URL_CHARACTERS)


class AvatarChange(Strict):
    """Body of `PATCH /avatars/{avatar_id}`. A setting that is null goes back to its default; others stay as they are."""

    name: str | None = Field(default=None, min_length=1, max_length=NAME_CHARACTERS)
    settings: dict[str, Any] | None = None


CLIPS_MOST = 16
"""Clips of an avatar beside `idle`: each that a session has played stays open at its engine."""


class ClipRecord(BaseModel):
    """A clip: the name of its bytes at the agents (`sha256:…`), and how many frames it has; None before it is prepared."""

    source: str
    frames: int | None = None
    size: int = 0


class AvatarRecord(BaseModel):
    """An avatar as it is stored. Times are Unix times.

    Args:
        key: name of the caller whose it is.
        source: `sha256:…` of the clip's bytes; None while they are still to be fetched from `url`.
        agent: where it was prepared.
        body_sha256: recognises the request that made it.
        size: bytes of the clips.
    """

    avatar_id: str
    key: str
    name: str
    created_at: float
    state: AvatarState = AvatarState.PREPARING
    settings: ShownSettings = ShownSettings()
    url: str | None = Field(default=None, repr=False)
    source: str | None = None
    clips: dict[str, ClipRecord] = {}
    report: AvatarReport | None = None
    error: Problem | None = None
    agent: str | None = None
    body_sha256: str = ""
    size: int = 0

    def clip(self, name: str) -> str | None:
        """The bytes of a clip, as the agents know them; None where there is no such clip."""
        if name == IDLE:
            return self.source
        found = self.clips.get(name)
        return found.source if found is not None else None

    @property
    def sources(self) -> set[str]:
        """Every clip's bytes."""
        return {clip.source for clip in self.clips.values()} | ({self.source} if self.source else set())


def new_avatar_id(key: str, idempotency_key: str | None) -> str:
    """An avatar's id: random, or always the same for a caller's idempotency key."""
    if idempotency_key is None:
        return "ava_" + secrets.token_hex(12)
    return "ava_" + hashlib.sha256(f"{key}\0{idempotency_key}".encode()).hexdigest()[:24]
