"""Recognises PCM that is not what it claims to be: int16 little endian, mono, at the declared rate.

Right PCM is smooth: neighbouring samples are alike. Where they are not, the same bytes are read in every other way that senders
get wrong, and the reading that is smooth has the name. What fits no reading and has bytes of every value is compressed. Another
rate leaves PCM smooth: the pace of an even sender gives it away, or how it sounds (`features.speech_detector.detect_rate`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.http import Suspicion

Sound = NDArray[np.float64]

_LEAST_SAMPLES = 8_000  # half a second at 16 kHz: enough to judge by
_MOST_SAMPLES = 12_000  # and what is looked at of each second, since the event loop waits for it
_LEAST_POWER = 1e4  # mean square below which there is nothing to judge (about -50 dBFS)
_ROUGH = 0.45  # correlation of neighbouring samples below which PCM is read in other ways; speech stays above it
_SMOOTH = 0.6  # and from which another reading is right
_SCRAMBLED_RMS = 8_000  # bytes that are no upper ones in their place: 18,900, and a part of it
_NOISY = 0.2
_ALIKE = 0.3  # difference of the histograms of even and odd bytes, 0 … 1; chance makes 0.1
_SMOOTHER = 0.3  # by so much more than the declared one
_RANDOM_BITS = 7.6  # entropy per byte; compressed audio has 7.8 and more, int16 noise at full scale 7.5 at most
_RANDOM_RMS = (15_000, 22_000)  # int16 of bytes of every value: 18,900
COMMON_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_PACE_S = 4.0
_PACE_LEAST = 20  # arrivals at different times
_PACE_OFF = 0.02
_RATE_AUDIO_S = 5.0  # of audio, to judge the rate by
_RATE_TRIES = 6  # per sender, until its audio is known to be right

EXPLANATIONS = {
    Suspicion.FLOAT32: "The PCM looks like 32-bit floats read as int16; send int16, or connect with format=f32le.",
    Suspicion.BYTE_SWAPPED: "The PCM looks big endian (its bytes are swapped, or one byte is missing); send little endian.",
    Suspicion.STEREO: "The PCM looks like two interleaved channels; send mono.",
    Suspicion.WRONG_RATE: "PCM arrives at the pace of another sample rate; name the right one in sample_rate=.",
    Suspicion.COMPRESSED: "The audio is compressed or in a file (MP3, Opus, Ogg, FLAC, WebM or WAV); decode it and send raw PCM.",
    Suspicion.PCM24: "The PCM looks like 24-bit samples; convert them to int16.",
    Suspicion.PCM32: "The PCM looks like 32-bit integers; convert them to int16.",
    Suspicion.PCM8: "The PCM looks like 8-bit samples; convert them to int16.",
    Suspicion.MULAW: "The audio looks like mu-law (G.711, telephony); decode it to int16, and name its rate (mostly 8000).",
    Suspicion.ALAW: "The audio looks like A-law (G.711, telephony); decode it to int16, and name its rate (mostly 8000).",
}
_WAV = "The audio begins with a WAV header; send the PCM without it."
_WAVS = "Each chunk comes with a WAV header of its own; send the PCM without them."


@dataclass(frozen=True, slots=True)
class Finding:
    """What PCM looks like, and the sentence for its sender."""

    suspicion: Suspicion
    text: str


def compressed_header(head: bytes) -> bool:
    """Whether `head`, the first bytes of a stream, is the beginning of a WAV, MP3, Ogg, FLAC or WebM file."""
    if head.startswith((b"RIFF", b"OggS", b"fLaC", b"ID3", b"\x1a\x45\xdf\xa3")):
        return True
    # an MPEG audio frame: 11 sync bits, a layer, a bit rate and a sample rate that exist
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] >> 4 not in (0, 15)


def detect(samples: Pcm) -> Suspicion | None:
    """Judges at least half a second of PCM, int16 `[n]`; None when it is too short, too quiet, or looks right."""
    if len(samples) < _LEAST_SAMPLES:
        return None
    samples = samples[:_MOST_SAMPLES]
    sound = samples.astype(np.float64)
    if float(np.mean(sound**2)) < _LEAST_POWER:
        return None
    raw = samples.tobytes()
    if _looks_float(raw):
        return Suspicion.FLOAT32
    if _bytes_alike(raw):
        likeness, name = max((_smoothness(reading), name) for name, reading in _readings_of_bytes(raw))
        if likeness > _SMOOTH:
            return name
    smooth = _smoothness(sound)
    if smooth < _ROUGH and float(np.mean(sound**2)) > _SCRAMBLED_RMS**2:
        likeness, name = max((_smoothness(reading), name) for name, reading in _readings_of_words(raw))
        if likeness > _SMOOTH and likeness > smooth + _SMOOTHER:
            return name
    if _looks_random(sound, raw):
        return Suspicion.COMPRESSED
    return Suspicion.STEREO if _looks_stereo(sound) else None


def _smoothness(sound: Sound) -> float:
    """Correlation of neighbouring samples: near 1 for voices, 0 for noise. 0 for what never changes."""
    rest = sound - sound.mean()
    power = float(np.dot(rest, rest))
    return float(np.dot(rest[1:], rest[:-1])) / power if power > 0 else 0.0


def _bytes_alike(raw: bytes) -> bool:
    """Whether bytes at even and odd places have the same values, as bytes that are samples have.

    The upper bytes of int16 have few values, the lower ones all. Samples near 0 are left out: there both may be 0.
    """
    words = np.frombuffer(raw, "<i2")
    octets = words[(words > 255) | (words < -256)].view(np.uint8)
    if len(octets) < _LEAST_SAMPLES // 2:
        return False
    even, odd = np.bincount(octets[::2], minlength=256), np.bincount(octets[1::2], minlength=256)
    return float(np.abs(even - odd).sum()) / len(octets) < _ALIKE


def _readings_of_bytes(raw: bytes) -> Iterator[tuple[Suspicion, Sound]]:
    """Each byte as a sample."""
    octets = np.frombuffer(raw, np.uint8)
    yield Suspicion.PCM8, octets.astype(np.float64)
    yield Suspicion.PCM8, octets.view(np.int8).astype(np.float64)
    yield Suspicion.MULAW, _MULAW[octets]
    yield Suspicion.ALAW, _ALAW[octets]


def _readings_of_words(raw: bytes) -> Iterator[tuple[Suspicion, Sound]]:
    """The same bytes as wider samples, or in another order."""
    octets = np.frombuffer(raw, np.uint8)
    words = np.frombuffer(raw, "<i2")
    yield Suspicion.BYTE_SWAPPED, words.byteswap().astype(np.float64)
    for offset in range(3):  # the upper two of three bytes
        whole = octets[offset : offset + (len(octets) - offset) // 3 * 3].reshape(-1, 3)
        yield Suspicion.PCM24, whole[:, 1] + 256.0 * whole[:, 2].view(np.int8)
    low = words[::2].astype(np.float64)
    if abs(_smoothness(low)) < _NOISY and not 1 < float(np.std(low)) < _SCRAMBLED_RMS:  # else these are two channels
        yield Suspicion.PCM32, words[1::2].astype(np.float64)


def _mulaw() -> Sound:
    """G.711 mu-law bytes to 14-bit samples."""
    code = ~np.arange(256, dtype=np.uint8)
    size = (((code & 15).astype(int) * 2 + 33) << (code >> 4 & 7)) - 33
    return np.asarray(np.where(code & 128, -size, size), np.float64)


def _alaw() -> Sound:
    """G.711 A-law bytes to 13-bit samples."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    low, exponent = (code & 15).astype(int) * 2 + 1, (code >> 4 & 7).astype(int)
    size = np.where(exponent > 0, (low + 32) << np.maximum(exponent - 1, 0), low)
    return np.asarray(np.where(code & 128, size, -size), np.float64)


_MULAW, _ALAW = _mulaw(), _alaw()


def _looks_float(raw: bytes) -> bool:
    for offset in (0, 2):
        usable = (len(raw) - offset) // 4 * 4
        values = np.frombuffer(raw[offset : offset + usable], "<f4")
        with np.errstate(invalid="ignore"):
            size = np.abs(values)
            plausible = ((size > 1e-7) & (size <= 4.0)) | (values == 0)
        if np.mean(plausible) > 0.98 and np.count_nonzero(values) > len(values) // 2:
            return True
    return False


def _looks_random(sound: Sound, raw: bytes) -> bool:
    low, high = _RANDOM_RMS
    if not low < float(np.sqrt(np.mean(sound**2))) < high:
        return False
    shares = np.bincount(np.frombuffer(raw[1::2], np.uint8), minlength=256) / (len(raw) // 2)
    shares = shares[shares > 0]
    return -float(np.sum(shares * np.log2(shares))) > _RANDOM_BITS


def _looks_stereo(x: Sound) -> bool:
    """Interleaved channels: neighbours of one frame are (nearly) alike, or differ far more than samples two apart do."""
    even = x[: len(x) // 2 * 2].reshape(-1, 2)
    within = float(np.mean((even[:, 1] - even[:, 0]) ** 2))
    across = float(np.mean((even[1:, 0] - even[:-1, 1]) ** 2))
    if min(within, across) < 0.05 * max(within, across):
        return True
    one, two = float(np.mean(np.diff(x) ** 2)), float(np.mean((x[2:] - x[:-2]) ** 2))
    power = float(np.mean(x**2))
    # the second test needs smooth channels, or a whistle near half the Nyquist frequency would pass for two of them
    return two < 0.2 * one and two < 0.2 * power


class FormatDetector:
    """Watches one sender. `finding` is what its PCM looks like, judged anew every second of audio and in every segment.

    Memory is bounded: a second of PCM, five seconds of audio for the rate, 1024 arrivals.

    Args:
        rate: the declared samples per second.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.finding: Finding | None = None
        self._wrong_rate: Finding | None = None
        self._rate_is_right = False
        self._tries = 0
        self.begin()

    @property
    def suspicion(self) -> Suspicion | None:
        """Of `finding`."""
        return self.finding.suspicion if self.finding else None

    def begin(self) -> None:
        """A segment begins: its first bytes may be a file's, and its pace is its own."""
        self._recent: list[Pcm] = []
        self._size = 0
        self._arrivals: deque[tuple[float, int]] = deque(maxlen=1024)
        self._received = 0
        self._headers = self._headers_recent = 0
        self._stereo_before = False
        self._for_rate: list[Pcm] = []
        self._for_rate_size = 0

    def push(self, samples: Pcm, now: float, *, speech: bool = True) -> Finding | None:
        """Takes PCM that came at `now` (monotonic seconds); returns what has just been found, None when nothing is new.

        Only of `speech` the rate is judged by its audio.
        """
        begins = self._received == 0
        self._received += len(samples)
        self._arrivals.append((now, self._received))
        found = self._look_for_headers(samples, begins=begins)
        part = samples[-self.rate :]
        self._recent.append(part)
        self._size += len(part)
        if self._size < self.rate:
            return found
        window = np.concatenate(self._recent)
        self._recent, self._size = [], 0
        headers, self._headers_recent = self._headers_recent, 0
        verdict = detect(window)
        stereo, self._stereo_before = self._stereo_before, verdict is Suspicion.STEREO
        if verdict is Suspicion.STEREO and not stereo:  # of 800 seconds of telephone speech two look like it
            return found
        if verdict is not None:
            return self._conclude(Finding(verdict, EXPLANATIONS[verdict])) or found
        if headers:
            return found
        loud = float(np.mean(window[:_MOST_SAMPLES].astype(np.float64) ** 2)) >= _LEAST_POWER
        if loud:
            if speech:
                self._keep_for_rate(window)
        elif self.suspicion is not Suspicion.COMPRESSED:  # silence says nothing, but that no file goes on
            return found
        return self._conclude(self._wrong_rate or (None if self._rate_is_right else self._pace())) or found

    def audio_for_rate(self) -> Pcm | None:
        """Five seconds of loud PCM that wait for `judged`, None until there are; they are given out once."""
        if self._for_rate_size < _RATE_AUDIO_S * self.rate or self._rate_is_right or self._tries >= _RATE_TRIES:
            return None
        sound = np.concatenate(self._for_rate)
        self._tries += 1
        self._for_rate, self._for_rate_size = [], 0
        return sound

    def judged(self, rate: int | None) -> Finding | None:
        """The rate that the audio itself shows, None where that is open. Returns what has just been found."""
        if rate is None:
            return None
        self._rate_is_right = rate == self.rate
        if self._rate_is_right:
            self._wrong_rate = None
            return self._conclude(None) if self.suspicion is Suspicion.WRONG_RATE else None
        text = f"The PCM was declared as {self.rate} Hz and sounds like about {rate} Hz; name the right rate in sample_rate=."
        self._wrong_rate = Finding(Suspicion.WRONG_RATE, text)
        return self._conclude(self._wrong_rate) if self.finding is None else None

    def _conclude(self, finding: Finding | None) -> Finding | None:
        arisen = finding if finding != self.finding else None
        self.finding = finding
        return arisen

    def _look_for_headers(self, samples: Pcm, *, begins: bool) -> Finding | None:
        raw = samples.tobytes()
        wav = raw.count(b"WAVEfmt ")
        if not wav and not (begins and compressed_header(raw[:16])):
            return None
        self._headers += max(1, wav)
        self._headers_recent += max(1, wav)
        text = EXPLANATIONS[Suspicion.COMPRESSED] if not wav else _WAVS if self._headers > 2 else _WAV
        return self._conclude(Finding(Suspicion.COMPRESSED, text))

    def _keep_for_rate(self, window: Pcm) -> None:
        if not self._rate_is_right and self._for_rate_size < _RATE_AUDIO_S * self.rate:
            self._for_rate.append(window)
            self._for_rate_size += len(window)

    def _pace(self) -> Finding | None:
        """A live source delivers at its own rate: an even pace at a higher common rate gives it away; bursts of a TTS do not.

        A pace below the declared one says nothing: PCM that comes too slowly is late, whatever its rate.
        """
        times = np.array([t for t, _ in self._arrivals])
        counts = np.array([c for _, c in self._arrivals], np.float64)
        recent = times > times[-1] - _PACE_S
        if recent.all() and len(times) < (self._arrivals.maxlen or 0):
            return None
        times, counts = times[recent] - times[-1], counts[recent]
        if len(np.unique(times)) < _PACE_LEAST:
            return None
        slope, start = np.polyfit(times, counts, 1)
        unevenness = float(np.max(np.abs(counts - (slope * times + start)))) / max(float(slope), 1.0)
        if unevenness > 0.15:
            return None
        nearest = min(COMMON_RATES, key=lambda rate: abs(float(slope) / rate - 1))
        if nearest <= self.rate or abs(float(slope) / nearest - 1) > _PACE_OFF:
            return None
        return Finding(
            Suspicion.WRONG_RATE,
            f"PCM arrives at the pace of {nearest} Hz, not of {self.rate}: name it in sample_rate=.",
        )
