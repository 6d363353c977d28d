"""What the sessions say: test tones whose beginnings a viewer can tell to the sample, or a recording."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.loadtest.detect import LOUD

RATE = 16_000
BLOCK = 640
"""Samples that are sent at once, 40 ms: a frame at 25 fps."""
UTTERANCE_S = 4.0
BURST_S = 0.2
PERIOD_S = 1.0
_LONGEST_S = 600
_TONE_HZ, _TONE_PEAK = 440, 16_000
Pcm = npt.NDArray[np.int16]


class SpeechError(Exception):
    """The file is no speech that can be sent; the message says what to do."""


@dataclass(frozen=True)
class Utterance:
    """int16 mono 16 kHz. `marks` are samples at which loud sound begins that a viewer can recognise."""

    pcm: Pcm
    marks: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pcm) / RATE


@dataclass(frozen=True)
class Speech:
    """Utterances that are said in turn; `interrupted` are those that get interrupted.

    `window_s` is how long after it was sent a mark is looked for at the viewer: less than the time to the next one.
    `tones`: every mark is a tone burst, which the engine `pattern` shows as white.
    """

    utterances: tuple[Utterance, ...]
    interrupted: tuple[Utterance, ...]
    window_s: float
    tones: bool


def tones() -> Speech:
    """Bursts of 200 ms each second; a tone without a pause for interruptions."""
    period = np.concatenate([_tone(BURST_S), np.zeros(round((PERIOD_S - BURST_S) * RATE), np.int16)])
    count = round(UTTERANCE_S / PERIOD_S)
    bursts = Utterance(np.tile(period, count), tuple(len(period) * k for k in range(count)))
    return Speech((bursts,), (Utterance(_tone(UTTERANCE_S), ()),), PERIOD_S - 0.05, tones=True)


def recording(path: Path) -> Speech:
    """A WAV file of 16-bit PCM, made mono at 16 kHz and cut into utterances. Raises SpeechError."""
    try:
        with wave.open(str(path)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if width != 2 or not 8000 <= rate <= 48_000 or not file.getnframes():
                raise SpeechError(f"{path}: give 16-bit PCM of 8 to 48 kHz, not {8 * width}-bit at {rate} Hz.")
            raw = np.frombuffer(file.readframes(min(file.getnframes(), _LONGEST_S * rate)), "<i2")
    except (OSError, EOFError, wave.Error) as error:
        raise SpeechError(f"{path}: {getattr(error, 'strerror', None) or error}: give a WAV file.") from error
    mono = raw.reshape(-1, channels).mean(axis=1)
    seconds = len(mono) / rate
    pcm = np.interp(np.arange(round(seconds * RATE)) / RATE, np.arange(len(mono)) / rate, mono).astype(np.int16)
    length = round(UTTERANCE_S * RATE)
    parts = [pcm[at : at + length] for at in range(0, max(1, len(pcm) - length // 2 + 1), length)]
    said = tuple(Utterance(part, _first_loud(part)) for part in parts)
    if not any(utterance.marks for utterance in said):
        raise SpeechError(f"{path}: it is silent: no sample above {LOUD} of 32767.")
    return Speech(said, said, UTTERANCE_S - 1, tones=False)


def _tone(seconds: float) -> Pcm:
    return (_TONE_PEAK * np.sin(2 * np.pi * _TONE_HZ * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def _first_loud(pcm: Pcm) -> tuple[int, ...]:
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > LOUD)
    return (int(loud[0]),) if len(loud) else ()
