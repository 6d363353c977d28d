"""How texts are spoken, as requests, sessions and the deployment say it: each field on its own, the nearer one wins."""

from __future__ import annotations

from pydantic import Field

from musetalk_agent.protocol.http import Strict
from orchestrator.tts.synthesizer import FASTEST_SPEED, SLOWEST_SPEED, SpeechOptions

VOICE_CHARACTERS = 128


class SpeechSettings(Strict):
    """Fields that are not given are those of the session (`speech` of `/session/start`), and then the deployment's.

    `speed` is a multiple of the voice's own pace.
    """

    voice: str | None = Field(default=None, min_length=1, max_length=VOICE_CHARACTERS)
    speed: float | None = Field(default=None, ge=SLOWEST_SPEED, le=FASTEST_SPEED)

    def over(self, base: SpeechSettings | None) -> SpeechSettings:
        """These, and those of `base` where they say nothing."""
        if base is None:
            return self
        given = base.model_dump(exclude_none=True) | self.model_dump(exclude_none=True, include=set(_FIELDS))
        return SpeechSettings(**given)

    def options(self) -> SpeechOptions:
        """For the voices."""
        return SpeechOptions(speed=self.speed or 1.0)


_FIELDS = tuple(SpeechSettings.model_fields)
