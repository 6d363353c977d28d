"""Speech options (voice, speed, pauses, lexicon) of a request, a session and the deployment. Each field is taken from the nearest
level that has it."""

from __future__ import annotations

from pydantic import Field

from musetalk_agent.protocol.http import Strict
from orchestrator.tts.lexicon import Lexicon, LexiconEntry
from orchestrator.tts.synthesizer import FASTEST_SPEED, SLOWEST_SPEED, SpeechOptions

VOICE_CHARACTERS = 128
NATURAL_PAUSE_MS_MAX = 5000
LEXICON_ENTRIES = 200
"""Of a request or a session; the deployment's file may have more."""


class SpeechSettings(Strict):
    """Fields that are not given are those of the session (`speech` of `/session/start`), and then the deployment's.

    `speed` is a multiple of the voice's own pace. The pauses after sentences and paragraphs are those at speed 1. The `lexicon`
    of a text goes before that of its session, and that before the deployment's.
    """

    voice: str | None = Field(default=None, min_length=1, max_length=VOICE_CHARACTERS)
    speed: float | None = Field(default=None, ge=SLOWEST_SPEED, le=FASTEST_SPEED)
    sentence_pause_ms: int | None = Field(default=None, ge=0, le=NATURAL_PAUSE_MS_MAX)
    paragraph_pause_ms: int | None = Field(default=None, ge=0, le=NATURAL_PAUSE_MS_MAX)
    lexicon: tuple[LexiconEntry, ...] | None = Field(default=None, max_length=LEXICON_ENTRIES)

    def over(self, base: SpeechSettings | None) -> SpeechSettings:
        """These, and those of `base` where they say nothing."""
        if base is None:
            return self
        given = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}
        lexicon = (*(self.lexicon or ()), *(base.lexicon or ()))
        return base.model_copy(update={**given, "lexicon": lexicon or None})

    def options(self) -> SpeechOptions:
        """For the voices."""
        return SpeechOptions(
            speed=self.speed or 1.0,
            sentence_pause_ms=self.sentence_pause_ms,
            paragraph_pause_ms=self.paragraph_pause_ms,
            lexicons=(Lexicon(self.lexicon),) if self.lexicon else (),
        )


_FIELDS = tuple(SpeechSettings.model_fields)
