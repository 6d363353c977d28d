"""Speech of a run: test tones whose starts a viewer finds to the sample, or a recording. Detectors of tone and white frame."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

LOUD = 2000
"""Amplitude (int16) from which audio is loud: speech and the test tone are, what a codec makes of silence is not."""
QUIET_S = 0.1
"""Audio has ended when none was loud for this long."""
WHITE = 160
"""Luma from which the centre is white; the pattern's white is 235, its black 16."""


class Loudness:
    """Follows audio at `rate` Hz. `onsets` and `offsets` are for the caller to take away."""

    def __init__(self, rate: int) -> None:
        self.onsets: list[float] = []
        self.offsets: list[float] = []
        self._rate = rate
        self._last: float | None = None

    def push(self, at: float, block: npt.NDArray[np.int16]) -> None:
        """`block` came at `at`, which is when its last sample did."""
        loud = np.flatnonzero(np.abs(block.astype(np.int32)) > LOUD)
        if len(loud):
            moments = at - (len(block) - 1 - loud) / self._rate
            for stretch in np.split(moments, np.flatnonzero(np.diff(moments) > QUIET_S) + 1):
                self._settle(stretch[0])
                if self._last is None:
                    self.onsets.append(float(stretch[0]))
                self._last = float(stretch[-1])
        self._settle(at)

    def _settle(self, now: float) -> None:
        if self._last is not None and now - self._last > QUIET_S:
            self.offsets.append(self._last)
            self._last = None


class Whiteness:
    """Follows frames. `whites` is for the caller to take away."""

    def __init__(self) -> None:
        self.whites: list[float] = []
        self._white = True  # what a viewer sees first did not turn white

    def push(self, at: float, luma: npt.NDArray[np.uint8]) -> None:
        """A frame, [H, W], came at `at`. Only its central eighth or so is looked at."""
        height, width = luma.shape
        centre = luma[height * 3 // 8 : height * 5 // 8 : 4, width * 3 // 8 : width * 5 // 8 : 4]
        white = float(centre.mean()) > WHITE
        if white and not self._white:
            self.whites.append(at)
        self._white = white


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
class SpokenClip:
    """int16 mono 16 kHz. `marks` are samples at which loud audio begins that a viewer can recognise."""

    pcm: Pcm
    marks: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pcm) / RATE


@dataclass(frozen=True)
class SpeechSource:
    """Utterances that are said in turn; `interrupted` are those that get interrupted.

    `window_s` is how long after it was sent a mark is looked for at the viewer: less than the time to the next one.
    `tones`: every mark is a tone burst, which the engine `pattern` shows as white.
    """

    utterances: tuple[SpokenClip, ...]
    interrupted: tuple[SpokenClip, ...]
    window_s: float
    tones: bool


def tones() -> SpeechSource:
    """Bursts of 200 ms each second; a tone without a pause for interruptions."""
    period = np.concatenate([_tone(BURST_S), np.zeros(round((PERIOD_S - BURST_S) * RATE), np.int16)])
    count = round(UTTERANCE_S / PERIOD_S)
    bursts = SpokenClip(np.tile(period, count), tuple(len(period) * k for k in range(count)))
    return SpeechSource((bursts,), (SpokenClip(_tone(UTTERANCE_S), ()),), PERIOD_S - 0.05, tones=True)


def recording(path: Path) -> SpeechSource:
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
    said = tuple(SpokenClip(part, _first_loud(part)) for part in parts)
    if not any(utterance.marks for utterance in said):
        raise SpeechError(f"{path}: it is silent: no sample above {LOUD} of 32767.")
    return SpeechSource(said, said, UTTERANCE_S - 1, tones=False)


def _tone(seconds: float) -> Pcm:
    return (_TONE_PEAK * np.sin(2 * np.pi * _TONE_HZ * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def _first_loud(pcm: Pcm) -> tuple[int, ...]:
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > LOUD)
    return (int(loud[0]),) if len(loud) else ()
