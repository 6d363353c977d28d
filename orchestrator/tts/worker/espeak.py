"""espeak-ng through its C interface: robotic, immediate, every language, with the phonemes' exact places.

The library comes with `espeakng-loader`, or is Debian's `libespeak-ng1`.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass, field

import numpy as np

from orchestrator.tts.worker.synthesis import (
    PLAIN,
    Cue,
    Manner,
    Pcm,
    SpokenText,
    VoiceEntry,
    block_levels,
    marked,
    merge,
    trim,
)

_SYSTEM_LIBRARY = "libespeak-ng.so.1"
# From espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA, _DONT_EXIT = 1, 2, 0x8000
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_BUFFER_MS = 200
_RATE = 1
WORDS_PER_MINUTE = 175
"""The pace by itself, of 80 … 450 that the library has."""

_STOPS = frozenset("ptkbdɡcʈɖɟq")
CLOSURE_MS = 100
"""Longest closure of a stop."""
_CLOSED_DBFS = -50.0


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


class _EspeakVoice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("languages", ctypes.c_void_p), ("identifier", ctypes.c_char_p)]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass
class _Take:
    """What one call of the synthesizer gave so far."""

    pieces: list[bytes] = field(default_factory=list)
    phonemes: list[tuple[str, int]] = field(default_factory=list)
    words: list[tuple[int, int]] = field(default_factory=list)


class EspeakEngine:
    """`espeak:LANGUAGE` for every language of the library.

    Raises:
        OSError: there is no library.
    """

    provider = "espeak"
    loaded = loads = 0

    def __init__(self) -> None:
        path, data = _library()
        self._lib = ctypes.CDLL(path)
        self._lib.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._lib.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_EspeakVoice))
        options = _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
        self._rate = int(self._lib.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, data, options))
        if self._rate <= 0:
            raise OSError("espeak-ng could not be initialised")
        self._languages = self._list_languages()
        self._take = _Take()
        # The library keeps the pointer only: the object must live as long as it.
        self._callback = _Callback(self._collect)
        self._lib.espeak_SetSynthCallback(self._callback)

    def voices(self) -> list[VoiceEntry]:
        """One voice per language."""
        return [
            {"name": f"espeak:{code}", "language": code, "provider": self.provider, "sample_rate": self._rate}
            for code in self._languages
        ]

    def speak(self, text: str, name: str, manner: Manner = PLAIN) -> SpokenText:
        """Speaks `text` in language `name`."""
        if name not in self._languages or self._lib.espeak_SetVoiceByName(self._languages[name].encode()) != 0:
            raise KeyError(name)
        self._lib.espeak_SetParameter(_RATE, round(WORDS_PER_MINUTE * manner.speed), 0)
        self._take = _Take()
        data = manner.spoken(text, None).encode() + b"\0"
        status = self._lib.espeak_Synth(data, len(data), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise RuntimeError(f"espeak_Synth: {status}")
        pcm: Pcm = np.frombuffer(b"".join(self._take.pieces), np.int16)
        cues = merge(_spans(self._take.phonemes, len(pcm)))
        marks = [(manner.written_at(character), sample) for character, sample in self._take.words]
        words = marked(text, marks, len(pcm))
        return trim(pcm, self._rate, close_stops(cues, pcm, self._rate), words)

    def _collect(self, wave: ctypes._Pointer[ctypes.c_short], samples: int, events: ctypes._Pointer[_Event]) -> int:
        if wave and samples > 0:
            self._take.pieces.append(ctypes.string_at(wave, 2 * samples))
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                # Seven bytes at most, cut in mid-character when the symbol is longer.
                symbol = bytes(event.id.string).split(b"\0")[0].decode(errors="ignore")
                self._take.phonemes.append((symbol, event.sample))
            elif event.type == _EVENT_WORD:
                self._take.words.append((event.text_position - 1, event.sample))
            index += 1
        return 0

    def _list_languages(self) -> dict[str, str]:
        """Language code → identifier of the voice that speaks it best (the library lists priority, then code)."""
        best: dict[str, tuple[int, str]] = {}
        voices = self._lib.espeak_ListVoices(None)
        index = 0
        while voices[index]:
            voice = voices[index].contents
            for priority, code in _codes(voice.languages):
                if code not in best or priority < best[code][0]:
                    best[code] = (priority, voice.identifier.decode())
            index += 1
        return {code: best[code][1] for code in sorted(best)}


def _codes(address: int) -> list[tuple[int, str]]:
    out: list[tuple[int, str]] = []
    while priority := ctypes.string_at(address, 1)[0]:
        code = ctypes.string_at(address + 1)
        out.append((priority, code.decode()))
        address += len(code) + 2
    return out


def _library() -> tuple[str, bytes | None]:
    """Path of the library, and of its data (None: its own place)."""
    try:
        loader = importlib.import_module("espeakng_loader")
    except ImportError:
        return _SYSTEM_LIBRARY, None
    return str(loader.get_library_path()), str(loader.get_data_path()).encode()


def _spans(phonemes: list[tuple[str, int]], samples: int) -> list[Cue]:
    """Each phoneme lasts until the next begins. `(en)` marks a switch of language, an empty symbol is a pause."""
    real = [(symbol, at) for symbol, at in phonemes if not symbol.startswith("(")]
    ends = [at for _, at in real[1:]] + [samples] if real else []
    return [(symbol, at, end) for (symbol, at), end in zip(real, ends, strict=True) if end > at]


def close_stops(cues: list[Cue], pcm: Pcm, rate: int) -> list[Cue]:
    """Begins each stop where its silence begins.

    espeak-ng's label of a stop comes with the burst, 30 to 50 ms after the mouth has closed; the silence in between is given
    to the sound before. Here it goes to the stop, up to `CLOSURE_MS` and never more than two thirds of that sound.
    """
    block = rate // 200
    silent = block_levels(pcm, block) < _CLOSED_DBFS if len(pcm) else np.zeros(0, bool)
    out: list[Cue] = []
    for symbol, start, end in cues:
        if out and symbol[:1] in _STOPS:
            before, begin, _ = out[-1]
            earliest = max(start - rate * CLOSURE_MS // 1000, start - (start - begin) * 2 // 3)
            index = start // block
            while index > 0 and silent[index - 1] and (index - 1) * block >= earliest:
                index -= 1
            start = max(begin, min(start, index * block))
            out[-1] = (before, begin, start)
        out.append((symbol, start, end))
    return out
