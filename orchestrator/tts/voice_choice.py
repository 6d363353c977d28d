"""Chooses the voice of a text that names none: one of the text's language, among those that are installed."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.tts.synthesizer import VoiceInfo

AUTO = "auto"
"""The voice's name for "one of the text's language"; `auto:LANGUAGE` says which language it probably is."""
ANY_LANGUAGE = "mul"
LANGUAGES = frozenset(
    (
        "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv nl no pl pt ro ru sk sl sr sv ta te th tr uk "
        "ur vi zh"
    ).split()
)
"""Those that a text may be found to be in: of smaller ones, short sentences of their large relatives are found too often."""
LETTERS_MIN = 4
"""A text with fewer letters says nothing about its language."""
TEXT_CHARACTERS = 1000
"""More of a text would change nothing."""
TIMES = 3.0
"""So many times likelier than the default voice's language another one must be. Of 121 sentences of two to six words in 11
languages none of the default's own is then taken for another one, and 2 of 110 others for the default's."""
_DEFAULT = "default"
_SAME = {"cmn": "zh", "nb": "no", "nn": "no"}
_QUALITIES = {"high": 0, "medium": 1, "low": 2, "x_low": 3}


@dataclass(frozen=True, slots=True)
class VoiceChoice:
    """A voice, and the language it was taken for; `automatic` when the request named none."""

    voice: str | None
    language: str = ""
    automatic: bool = False


def auto_voice(language: str) -> str:
    """The name of a voice of this language; without one the default voice, whatever its texts' languages."""
    return f"{AUTO}:{language or _DEFAULT}"


def is_auto(voice: str | None) -> bool:
    """Whether the voice is to be chosen by the language."""
    return voice is not None and voice.partition(":")[0] == AUTO


def base(language: str) -> str:
    """The language without its region, ISO 639-1 where there is one: `de` of `de-AT`, `zh` of `cmn`."""
    first = language.lower().replace("_", "-").partition("-")[0]
    return _SAME.get(first, first)


def candidates(voices: Sequence[VoiceInfo]) -> list[str]:
    """Languages that a text may be found to be in, of those that have a voice."""
    return sorted({base(each.language) for each in voices} & LANGUAGES)


def says_nothing(text: str) -> bool:
    """Whether a text is too short for its language to be found; a character that is a syllable or a word counts as four letters."""
    letters = sum(4 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text if c.isalpha())
    return letters < LETTERS_MIN


def best_language(ranked: Sequence[tuple[str, float]], default: str) -> str:
    """The text's language by the shares of the candidates; the default where none is clearly likelier."""
    shares = dict(ranked)
    if not shares:
        return default
    likeliest = max(shares, key=lambda language: shares[language])
    return likeliest if shares[likeliest] > TIMES * shares.get(default, 0.0) else default


def best_voice(voices: Sequence[VoiceInfo], language: str, default: VoiceInfo | None) -> VoiceInfo | None:
    """The voice for a language (with a region or without), None where there is none.

    The default one where it speaks it; then neural ones before espeak's, those of the same region, and the better quality.
    """
    if default is not None and default.language == ANY_LANGUAGE:
        return default
    wanted, given = base(language), language.lower().replace("_", "-")
    fitting = [each for each in voices if base(each.language) == wanted]
    if default is not None and default in fitting and (default.language.lower() == given or given == wanted):
        return default

    def order(voice: VoiceInfo) -> tuple[bool, bool, int, bool, str]:
        spoken = voice.language.lower()
        preferred = spoken in (given, "en-us") if given == wanted else spoken == given
        return (
            voice.provider == "espeak",
            not preferred,
            _QUALITIES.get(voice.quality, 1),
            "-" in spoken,
            voice.name,
        )

    return min(fitting, key=order, default=None)
