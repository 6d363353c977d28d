"""What an answer's bytes are, whatever its server says: sound, text, or compressed sound that would be noise. Without I/O."""

from __future__ import annotations

import codecs

import numpy as np
from numpy.typing import NDArray

LOOK_BYTES = 2048
"""Looked at before anything is spoken: 43 ms at 24 kHz, which providers send in one piece."""
_CONTAINERS = {
    b"ID3\x02": "MP3",
    b"ID3\x03": "MP3",
    b"ID3\x04": "MP3",
    b"OggS": "Ogg",
    b"fLaC": "FLAC",
    b"\x1a\x45\xdf\xa3": "WebM",
    b"FORM": "AIFF",
    b"#!AM": "AMR",
    b"caff": "CAF",
    b".snd": "AU",
    b"RIFX": "big-endian WAV",
    b"RF64": "RF64",
}
_MPEG_BITRATES = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # layer III of MPEG-1, kbit/s
_MPEG2_BITRATES = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG_RATES = (44100, 48000, 32000)
_NOISE_RMS = 14000.0
"""−7.4 dBFS. Compressed sound read as int16 is spread evenly: its RMS is 18,900. Speech is softer, and its neighbours are alike."""
_NOISE_LIKENESS = 0.15
"""Correlation with the next sample and the one after it, under which a window is noise."""


def encoded(head: bytes) -> str | None:
    """The name of the format when these first bytes are no PCM, such as `WebM`, `text`; None when they may be PCM or a WAV file.

    A few bytes alone are no proof: PCM may begin with `{`, or with what begins a frame of MP3.
    """
    if (name := _CONTAINERS.get(head[:4])) is not None:
        return name
    if head[4:8] == b"ftyp":
        return "MP4"
    if is_text(head):
        return "text"
    for name, length in (("MP3", _mpeg_frame(head)), ("AAC", _adts_frame(head))):
        if (
            length
            and head[length : length + 2]
            and head[length : length + 1] == b"\xff"
            and head[1] == head[length + 1]
        ):
            return name
    return None


def is_text(head: bytes) -> bool:
    """Whether the bytes are UTF-8 (perhaps cut off at the end) without control characters, as JSON and HTML are and no sound is."""
    if len(head) < 2 or any(byte < 32 and byte not in b"\t\n\r" for byte in head[:256]):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head[:256])
    except UnicodeDecodeError:
        return False
    return True


def is_noise(samples: NDArray[np.int16]) -> bool:
    """Whether these samples (some hundred at least) are loud and without any likeness between neighbours."""
    wave = samples.astype(np.float64)
    power = float(np.mean(wave * wave)) if len(wave) >= 256 else 0.0
    if power < _NOISE_RMS**2:
        return False
    return all(abs(float(np.mean(wave[lag:] * wave[:-lag]))) < _NOISE_LIKENESS * power for lag in (1, 2))


def _mpeg_frame(head: bytes) -> int:
    """Bytes of the frame of MPEG layer III that the head would begin with; 0 when it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    first = version == 3
    kbits = (_MPEG_BITRATES if first else _MPEG2_BITRATES)[bitrate]
    hertz = _MPEG_RATES[rate] // (1 if first else 4 if version == 0 else 2)
    return (144 if first else 72) * 1000 * kbits // hertz + (head[2] >> 1 & 1)


def _adts_frame(head: bytes) -> int:
    """Bytes of the frame of AAC that the head would begin with; 0 when it is none."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0
