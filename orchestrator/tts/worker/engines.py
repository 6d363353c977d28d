"""What is installed, as engines that turn a part of text into sound and phonemes."""

from __future__ import annotations

from typing import Protocol, TypedDict

from orchestrator.tts.worker.synthesis import SpokenText

THREADS = 2


class VoiceEntry(TypedDict):
    """One voice in the hello message; the fields of `base.VoiceInfo`."""

    name: str
    language: str
    provider: str
    sample_rate: int


class VoiceEngine(Protocol):
    """One provider's voices."""

    provider: str

    def voices(self) -> list[VoiceEntry]:
        """Every voice it has."""
        ...

    def speak(self, text: str, name: str) -> SpokenText:
        """Speaks one part with the voice `provider:name`."""
        ...


def load_engines() -> tuple[list[VoiceEngine], list[str]]:
    """The engines that can run here, loaded and warmed up, and the names of those that cannot."""
    engines: list[VoiceEngine] = []
    missing: list[str] = []
    try:
        from orchestrator.tts.worker.piper_voice import PiperEngine

        engines.append(PiperEngine(threads=THREADS))
    except ImportError as error:
        missing.append(f"piper: {error.name}")
    try:
        from orchestrator.tts.worker.espeak import EspeakEngine

        engines.append(EspeakEngine())
    except OSError:
        missing.append("espeak: libespeak-ng")
    return engines, missing
