"""Synthesizes one part of a text: PCM, phoneme cues, and the positions of the written words, from the voice's marks or by counting
sounds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]
Cue = tuple[str, int, int]

PAUSE = "_"
LEAD_MS = 30
"""Silence left before the first sound and after the last: enough for a soft consonant that the threshold misses."""
SILENCE_DBFS = -52.0
"""Level (RMS of 5 ms) under which nothing is heard; piper's silence is at -70 dBFS, its softest /f/ at -48."""
_BLOCK_MS = 5

_BEFORE = frozenset("ˈˌ")
_AFTER = frozenset("ːˑʲʰʷˤ˞ⁿ")


@dataclass(frozen=True, slots=True)
class SpokenText:
    """int16 mono PCM `[n]`, samples per second, the phonemes that cover it from 0 to n without a gap (or none), and the words."""

    pcm: Pcm
    sample_rate: int
    cues: list[Cue]
    words: list[Cue] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Replacement:
    """Characters `start` to `end` of a text are said as something else: as `ipa` where the voice takes that, or as `say`."""

    start: int
    end: int
    say: str = ""
    ipa: str = ""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a part is spoken: `speed` times as fast as the voice by itself (0.5 … 2), with words said as `replacements` have it.

    They are in the order of the text and do not overlap.
    """

    speed: float = 1.0
    replacements: tuple[Replacement, ...] = ()

    def spoken(self, text: str, ipa: str | None, start: int = 0, end: int | None = None) -> str:
        """What is said of `text[start:end]`.

        `ipa` is how the voice takes phonemes, with `{}` in their place; None: it takes none, and a word that has nothing but
        phonemes is said as it is written.
        """
        out, at, end = [], start, len(text) if end is None else end
        for each in self.replacements:
            if each.end <= start or each.start >= end:
                continue
            said = ipa.format(each.ipa) if ipa and each.ipa else each.say or text[each.start : each.end]
            if each.start >= start:  # what continues a phrase was said by its beginning
                out += [text[at : each.start], said]
            at = max(at, min(each.end, end))
        return "".join([*out, text[at:end]])

    def written_at(self, character: int) -> int:
        """Where in the written text the character of `spoken(text, None)` comes from."""
        shift = 0
        for each in self.replacements:
            length = len(each.say) if each.say else each.end - each.start
            begin = each.start + shift
            if character < begin:
                break
            if character < begin + length:
                return each.start
            shift += length - (each.end - each.start)
        return character - shift


PLAIN = Manner()


def merge(symbols: Sequence[Cue]) -> list[Cue]:
    """One cue per sound: stress marks join the sound after them, length and other modifiers the one before, with their time.

    Spaces between words join the sound after them: within a phrase no voice pauses there, and a stop's closure lies in it.
    After punctuation they are part of its pause.
    Whatever is no sound (punctuation, ends of the phrase) becomes a pause.
    """
    out: list[Cue] = []
    prefix, begin = "", None
    for symbol, start, end in symbols:
        start = start if begin is None else begin
        if symbol == " " and out and out[-1][0] == PAUSE and not prefix:
            out[-1] = (PAUSE, out[-1][1], end)
        elif symbol in _BEFORE or symbol == " ":
            prefix, begin = prefix + symbol.strip(), start
        elif out and out[-1][0] != PAUSE and _modifies(symbol):
            out[-1] = (out[-1][0] + symbol, out[-1][1], end)
        else:
            sound = _is_sound(symbol)
            out.append((prefix + symbol if sound else PAUSE, start, end))
            prefix, begin = "", None
    return out


def shift(cues: Sequence[Cue], by: int) -> list[Cue]:
    """Moves every cue by `by` samples."""
    return [(symbol, start + by, end + by) for symbol, start, end in cues]


def tile(cues: Sequence[Cue], samples: int) -> list[Cue]:
    """The cues clipped to `[0, samples)`, gaps filled by pauses, neighbouring pauses joined: they cover every sample once."""
    out: list[Cue] = []
    at = 0
    for symbol, start, end in [*cues, (PAUSE, samples, samples)]:
        start, end = max(at, min(start, samples)), min(end, samples)
        for piece in ((PAUSE, at, start), (symbol, start, end)):
            if piece[2] <= piece[1]:
                continue
            if piece[0] == PAUSE and out and out[-1][0] == PAUSE:
                out[-1] = (PAUSE, out[-1][1], piece[2])
            else:
                out.append(piece)
            at = piece[2]
    return out


def trim(pcm: Pcm, rate: int, cues: Sequence[Cue], words: Sequence[Cue] = ()) -> SpokenText:
    """Cuts silence at both ends down to `LEAD_MS` and makes the cues cover what is left. All silence: nothing is left."""
    block = rate * _BLOCK_MS // 1000
    levels = block_levels(pcm, block)
    loud = np.flatnonzero(levels > SILENCE_DBFS)
    if not loud.size:
        return SpokenText(pcm[:0], rate, [])
    lead = rate * LEAD_MS // 1000
    first = max(0, int(loud[0]) * block - lead)
    last = min(len(pcm), (int(loud[-1]) + 1) * block + lead)
    kept = pcm[first:last]
    within = [(word, min(max(0, a), len(kept)), min(max(0, b), len(kept))) for word, a, b in shift(words, -first)]
    return SpokenText(kept, rate, tile(shift(cues, -first), len(kept)) if cues else [], within)


def block_levels(pcm: Pcm, block: int) -> NDArray[np.float64]:
    """RMS of each block of `block` samples in dB of full scale; the last one is padded with silence."""
    padded = np.pad(pcm.astype(np.float64), (0, -len(pcm) % block))
    rms = np.sqrt(np.mean(padded.reshape(-1, block) ** 2, axis=1))
    levels: NDArray[np.float64] = 20 * np.log10((rms + 0.1) / 32768)
    return levels


def _modifies(symbol: str) -> bool:
    return all(c in _AFTER or unicodedata.category(c) in ("Mn", "Sk", "Lm") for c in symbol) and symbol != ""


def _is_sound(symbol: str) -> bool:
    return any(unicodedata.category(c)[0] == "L" for c in symbol)


_WORD = re.compile(r"\s*\S+\s*")
_NEAR = 2.5
"""Sounds by which a word may be off its place by count: in a phrase some are swallowed."""


def written(text: str) -> list[str]:
    """The words with the space after them; put together they are the text."""
    return _WORD.findall(text)


def spoken_words(text: str, manner: Manner, ipa: str | None, sounds: Callable[[str], int]) -> list[tuple[str, int]]:
    """The written words of `text`, each with how many sounds it has when it is said alone, for `counted`."""
    out: list[tuple[str, int]] = []
    at = 0
    for word in written(text):
        said = manner.spoken(text, ipa, at, at + len(word))
        out.append((word, sounds(said) if any(c.isalnum() for c in said) else 1))
        at += len(word)
    return out


def marked(text: str, marks: Sequence[tuple[int, int]], samples: int) -> list[Cue]:
    """Words from marks `(first character, sample)`; each lasts until the next begins, the last until `samples`."""
    rising: list[tuple[int, int]] = []
    for character, sample in marks:
        if 0 <= character < len(text) and (not rising or character > rising[-1][0]):
            rising.append((character, sample))
    if not rising:
        return []
    rising[0] = (0, rising[0][1])
    ends = [*rising[1:], (len(text), samples)]
    return [(text[a:b], at, max(at, end)) for (a, at), (b, end) in zip(rising, ends, strict=True)]


def counted(words: Sequence[tuple[str, int]], symbols: Sequence[Cue]) -> list[Cue]:
    """Words, each with how many sounds it has when it is said alone, placed on the sounds of the phrase.

    Spoken words may be fewer (`of the` is said as one): a written word begins where a spoken one does, if one is near.
    """
    sounds = _sounds(symbols)
    total = sum(count for _, count in words)
    if not sounds or not total:
        return []
    starts: list[int] = []
    before, index = 0, 0
    for _, count in words:
        wanted = before * len(sounds) / total
        near = [j for j, (_, begins) in enumerate(sounds) if begins and abs(j - wanted) <= _NEAR and j >= index]
        index = min(near, key=lambda j: abs(j - wanted)) if near else max(index, min(round(wanted), len(sounds) - 1))
        starts.append(sounds[index][0])
        before += count
    ends = [*starts[1:], symbols[-1][2]]
    return [(word, start, end) for (word, _), start, end in zip(words, starts, ends, strict=True)]


def count_sounds(symbols: Sequence[str]) -> int:
    """How many of the phonemes are sounds."""
    return sum(is_letter(symbol) for symbol in symbols)


def is_letter(symbol: str) -> bool:
    """A sound, and no stress mark, modifier, space or punctuation."""
    return any(unicodedata.category(c) in ("Ll", "Lu", "Lo") for c in symbol)


def _sounds(symbols: Sequence[Cue]) -> list[tuple[int, bool]]:
    """First sample of each sound, and whether it begins a spoken word."""
    out: list[tuple[int, bool]] = []
    begins = True
    for symbol, start, _ in symbols:
        if is_letter(symbol):
            out.append((start, begins))
            begins = False
        elif symbol == " " or unicodedata.category(symbol[:1] or " ")[0] == "P":
            begins = True
    return out


THREADS = 2


class BrokenVoiceError(Exception):
    """A voice's files cannot be loaded; the message names the file."""


class VoiceEntry(TypedDict):
    """One voice in the hello message; the fields of `synthesizer.VoiceInfo`."""

    name: str
    language: str
    provider: str
    sample_rate: int
    quality: NotRequired[str]


class VoiceEngine(Protocol):
    """One provider's voices."""

    provider: str
    loaded: int
    """Models in memory now."""
    loads: int
    """Models that were loaded since the start."""

    def voices(self) -> list[VoiceEntry]:
        """Every voice it has, but for those of the folder, which the service lists itself."""
        ...

    def speak(self, text: str, name: str, manner: Manner = PLAIN) -> SpokenText:
        """Speaks one part with the voice `provider:name`."""
        ...


def load_engines(
    folder: Path | None = None, loaded: int = 3, kokoro: Path | None = None
) -> tuple[list[VoiceEngine], list[str]]:
    """The engines that can run here, loaded and warmed up, and the names of those that cannot.

    `folder` has further piper voices; so many stay `loaded`. `kokoro` has the styles of Kokoro's voices.
    """
    engines: list[VoiceEngine] = []
    missing: list[str] = []
    try:
        from orchestrator.tts.worker.piper_engine import PiperEngine

        engines.append(PiperEngine(threads=THREADS, folder=folder, loaded=loaded))
    except ImportError as error:
        missing.append(f"piper: {error.name}")
    if kokoro is not None:
        try:
            from orchestrator.tts.worker.kokoro import KokoroEngine

            engines.append(KokoroEngine(kokoro, threads=THREADS))
        except ImportError as error:
            missing.append(f"kokoro: {error.name}")
    try:
        from orchestrator.tts.worker.espeak import EspeakEngine

        engines.append(EspeakEngine())
    except OSError:
        missing.append("espeak: libespeak-ng")
    return engines, missing
