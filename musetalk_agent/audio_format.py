"""Tells PCM that is not what it claims to be: int16 little endian, mono, at the declared rate.

Each test looks for what the wrong format does to numbers that are read as int16; real speech was checked against all of them.
"""

from __future__ import annotations

import numpy as np

from musetalk_agent.media import Pcm
from musetalk_agent.protocol.diagnosis import Suspicion

_LEAST_SAMPLES = 8_000  # half a second at 16 kHz: enough to judge by
_LEAST_POWER = 1e4  # mean square below which there is nothing to judge (about -50 dBFS)
_COMMON_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_PACE_SECONDS = 4.0

EXPLANATIONS = {
    Suspicion.FLOAT32: "The PCM looks like 32-bit floats read as int16; send int16, or connect with format=f32le.",
    Suspicion.BYTE_SWAPPED: "The PCM looks big endian (its bytes are swapped); send little endian.",
    Suspicion.STEREO: "The PCM looks like two interleaved channels; send mono.",
    Suspicion.WRONG_RATE: "PCM arrives at the pace of another sample rate; name the right one in sample_rate=.",
    Suspicion.COMPRESSED: "The audio begins with a file header (WAV, MP3, Ogg or FLAC); send raw PCM without it.",
}


def compressed_header(head: bytes) -> bool:
    """Whether `head`, the first bytes of a stream, is the beginning of a WAV, MP3, Ogg, FLAC or WebM file."""
    if head.startswith((b"RIFF", b"OggS", b"fLaC", b"ID3", b"\x1a\x45\xdf\xa3")):
        return True
    # an MPEG audio frame: 11 sync bits, a layer, a bit rate and a sample rate that exist
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] >> 4 not in (0, 15)


def _roughness(samples: np.ndarray) -> float:
    """Power of the first difference over power: near 0 for smooth sound, 2 for white noise."""
    power = float(np.mean(samples**2))
    return float(np.mean(np.diff(samples) ** 2)) / max(power, 1e-9)


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


def suspect(samples: Pcm) -> Suspicion | None:
    """Judges at least half a second of PCM, int16 `[n]`; None when it is too short, too quiet, or looks right."""
    if len(samples) < _LEAST_SAMPLES:
        return None
    x = samples.astype(np.float64)
    if float(np.mean(x**2)) < _LEAST_POWER:
        return None
    if _looks_float(samples.tobytes()):
        return Suspicion.FLOAT32
    rough = _roughness(x)
    swapped = _roughness(samples.byteswap().astype(np.float64))
    if rough > 0.8 and swapped < 0.4 * rough:
        return Suspicion.BYTE_SWAPPED
    if _looks_stereo(x):
        return Suspicion.STEREO
    return None


def _looks_stereo(x: np.ndarray) -> bool:
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


class FormatWatch:
    """Watches one sender; `suspicion` is what its PCM looks like, judged anew every second of sound.

    Args:
        rate: the declared samples per second.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.suspicion: Suspicion | None = None
        self._recent: list[Pcm] = []
        self._size = 0
        self._arrivals: list[tuple[float, int]] = []
        self._received = 0

    def push(self, samples: Pcm, now: float) -> Suspicion | None:
        """Takes PCM that came at `now` (monotonic seconds); returns a suspicion that has just arisen."""
        if self._received == 0 and compressed_header(samples[:8].tobytes()):
            return self._conclude(Suspicion.COMPRESSED)
        self._received += len(samples)
        if self.suspicion is Suspicion.COMPRESSED:
            return None
        self._arrivals.append((now, self._received))
        self._recent.append(samples)
        self._size += len(samples)
        if self._size < self.rate:
            return None
        verdict = suspect(np.concatenate(self._recent)) or self._pace()
        loud = any(np.abs(part).max(initial=0) > 300 for part in self._recent)
        self._recent, self._size = [], 0
        if verdict is None and not loud:
            return None  # silence says nothing either way
        return self._conclude(verdict)

    def _conclude(self, verdict: Suspicion | None) -> Suspicion | None:
        arisen = verdict if verdict != self.suspicion else None
        self.suspicion = verdict
        return arisen

    def _pace(self) -> Suspicion | None:
        """A live source delivers at its own rate: an even pace at another common rate gives it away; a TTS's bursts do not."""
        self._arrivals = self._arrivals[-1024:]
        times = np.array([t for t, _ in self._arrivals])
        counts = np.array([c for _, c in self._arrivals], np.float64)
        recent = times > times[-1] - _PACE_SECONDS
        if recent.all() or recent.sum() < 20:
            return None
        times, counts = times[recent], counts[recent]
        slope, start = np.polyfit(times - times[0], counts, 1)
        unevenness = float(np.max(np.abs(counts - (slope * (times - times[0]) + start)))) / max(slope, 1.0)
        if unevenness > 0.15:
            return None
        nearest = min(_COMMON_RATES, key=lambda rate: abs(slope / rate - 1))
        wrong = nearest != self.rate and abs(slope / nearest - 1) < 0.02
        return Suspicion.WRONG_RATE if wrong else None
