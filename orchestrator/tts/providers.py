"""The providers of voices that are configured."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.tts.base import Synthesizer
from orchestrator.tts.elevenlabs import ElevenLabs, ElevenLabsOptions
from orchestrator.tts.local import LocalSynthesizer
from orchestrator.tts.openai_speech import OpenAIOptions, OpenAISpeech


@dataclass(frozen=True)
class VoiceOptions:
    """The voices elsewhere; None: not configured."""

    elevenlabs: ElevenLabsOptions | None = None
    openai: OpenAIOptions | None = None


def synthesizers(options: VoiceOptions) -> list[Synthesizer]:
    """The embedded voices, and those elsewhere."""
    made: list[Synthesizer] = [LocalSynthesizer()]
    if options.elevenlabs is not None:
        made.append(ElevenLabs(options.elevenlabs))
    if options.openai is not None:
        made.append(OpenAISpeech(options.openai))
    return made
