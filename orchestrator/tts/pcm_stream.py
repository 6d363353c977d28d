"""Decodes audio as it arrives over HTTP: raw PCM or a WAV file of unknown length. Detects other formats and noise. No I/O."""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

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


PCM_RATE = 24000
"""Rate of bare PCM: int16 little endian mono, as OpenAI has it. The Content-Type overrules it: `audio/pcm;rate=16000`."""
_HEADER_BYTES = 4096
"""The sound of a WAV file begins before this."""
_RATES = range(8000, 48001)
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FORMS = {(_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32)}
_UNKNOWN_LENGTH = 0x7FFFFF00
"""Sizes from here on are those of a stream whose length was not known when its header was written; so is 0."""
_AFTER_DATA = (
    b"LIST",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"fact",
    b"cue ",
    b"smpl",
    b"PEAK",
    b"JUNK",
    b"junk",
    b"PAD ",
    b"_PMX",
    b"iXML",
)
_WINDOW = 1024
_NO_SOUND = ("text/", "image/", "video/", "application/json", "application/problem+json", "application/xml")
_PCM_TYPES = ("audio/pcm", "audio/l16", "audio/raw", "audio/x-raw")


class WaveError(Exception):
    """The bytes are not sound of a form that is known."""


class _State(Enum):
    """Where in the answer a reader is: before the sound, in it, behind what its header knew of, behind all of it."""

    HEAD = auto()
    SOUND = auto()
    AFTER = auto()
    OVER = auto()


@dataclass(frozen=True)
class Layout:
    """How the samples of a stream are written: rate in Hz, channels 1 or 2, and `(form, bits)` as WAV numbers them."""

    rate: int = PCM_RATE
    channels: int = 1
    form: int = _PCM
    bits: int = 16

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8

    def mono(self, block: bytes) -> NDArray[np.int16]:
        """Whole frames as int16 mono: channels are averaged, deeper samples are cut, floats beyond ±1 are clipped."""
        if self.form == _FLOAT:
            wave = np.nan_to_num(np.frombuffer(block, "<f4").astype(np.float64), nan=0.0, posinf=1.0, neginf=-1.0)
            frames: NDArray[np.float64] | NDArray[np.signedinteger[Any]] = np.clip(wave * 32767, -32768, 32767)
        elif self.bits == 24:
            frames = np.frombuffer(np.frombuffer(block, np.uint8).reshape(-1, 3)[:, 1:].tobytes(), "<i2")
        else:
            frames = np.frombuffer(block, f"<i{self.bits // 8}") >> (self.bits - 16)
        if self.channels > 1:
            frames = frames.reshape(-1, self.channels).mean(axis=1)
        return frames.astype(np.int16)


class PcmStreamDecoder:
    """Bytes of one answer in as they come, whole int16 mono samples out.

    Args:
        content_type: the answer's header. It decides where it says what the bytes are not (`text/html`, `video/webm`), and says
            the rate of bare PCM; what it says beside that is not believed, for many servers say `audio/mpeg` whatever they send.

    Raises:
        WaveError: at once for a type that is no sound; from `feed` and `finish` for bytes that are none. Nothing was handed out of
            bytes that turn out to be text or compressed sound.
    """

    def __init__(self, content_type: str = "") -> None:
        self.samples = 0
        self._layout = _announced(content_type)
        self._state = _State.HEAD
        self._held = bytearray()  # what cannot be decided yet
        self._part = b""
        self._window = np.zeros(0, np.int16)
        self._left: int | None = None

    @property
    def rate(self) -> int:
        """Samples per second; certain once there is sound."""
        return self._layout.rate

    def feed(self, block: bytes) -> bytes:
        """PCM of what came."""
        return self._read(block, complete=False)

    def finish(self) -> bytes:
        """The answer is complete: the rest of its PCM."""
        rest = self._read(b"", complete=True)
        if not self.samples:
            raise WaveError("there is no sound in it")
        return rest

    def _read(self, block: bytes, *, complete: bool) -> bytes:
        out = bytearray()
        self._held += block
        while self._held and self._state is not _State.OVER:
            match self._state:
                case _State.HEAD:
                    begin = self._begin(bytes(self._held), complete=complete)
                    if begin is None:
                        break
                    del self._held[:begin]
                    self._state = _State.SOUND
                case _State.SOUND:
                    count = len(self._held) if self._left is None else min(self._left, len(self._held))
                    out += self._samples(bytes(self._held[:count]))
                    del self._held[:count]
                    if self._left is not None:
                        self._left -= count
                        if not self._left:
                            self._state, self._part, self._left = _State.AFTER, b"", None
                case _State.AFTER:
                    if len(self._held) < 5:
                        break
                    self._after()
        if self._state is _State.OVER:
            self._held.clear()
        return bytes(out)

    def _begin(self, head: bytes, *, complete: bool) -> int | None:
        """Where the sound begins in the answer's first bytes; None while that cannot be said."""
        if head.startswith(b"RIFF"):
            begin = self._wav(head)
            if begin is None and (complete or len(head) > _HEADER_BYTES):
                raise WaveError("a WAV whose sound does not begin")
            return begin
        if len(head) < LOOK_BYTES and not complete:
            return None
        if (name := encoded(head)) is not None:
            raise WaveError(f"it is {name} and begins with {head[:4]!r}")
        return 0

    def _after(self) -> None:
        """Looks at what follows the sound: another chunk of the file, another file, or more sound than the header knew of."""
        if self._held[:1] == b"\0" and self._held[1:5] in _AFTER_DATA:
            del self._held[:1]  # the pad byte of an odd length
        if self._held[:4] in _AFTER_DATA:
            self._state = _State.OVER
        else:
            self._state = _State.HEAD if self._held[:4] == b"RIFF" else _State.SOUND

    def _samples(self, block: bytes) -> bytes:
        block = self._part + block
        whole = len(block) // self._layout.frame_bytes * self._layout.frame_bytes
        self._part = block[whole:]
        pcm = self._layout.mono(block[:whole])
        self._window = np.concatenate((self._window, pcm))
        for at in range(0, len(self._window) - _WINDOW + 1, _WINDOW):
            if is_noise(self._window[at : at + _WINDOW]):
                raise WaveError("it is noise: compressed, encrypted, or samples of another form")
        self._window = self._window[len(self._window) // _WINDOW * _WINDOW :]
        self.samples += len(pcm)
        return pcm.astype("<i2").tobytes()

    def _wav(self, head: bytes) -> int | None:
        """Where the sound of a WAV file begins; None while that has not come."""
        if len(head) < 12:
            return None
        if head[8:12] != b"WAVE":
            raise WaveError(f"it is RIFF of the kind {head[8:12]!r}")
        at, known = 12, False
        while at + 8 <= len(head):
            name, size = head[at : at + 4], struct.unpack_from("<I", head, at + 4)[0]
            if name == b"data":
                if not known:
                    raise WaveError("a WAV without its format")
                self._left = size if 0 < size < _UNKNOWN_LENGTH else None
                return at + 8
            if name == b"fmt ":
                if size < 16:
                    raise WaveError("a WAV without its format")
                if at + 8 + min(size, 26) > len(head):
                    return None
                layout, known = _described(head[at + 8 : at + 8 + size]), True
                if self.samples and layout != self._layout:
                    raise WaveError("it changes its format on the way")
                self._layout = layout
            at += 8 + size + size % 2
            if at > _HEADER_BYTES:
                raise WaveError("a WAV whose sound does not begin")
        return None


def _described(chunk: bytes) -> Layout:
    """The layout in a WAV's `fmt ` chunk."""
    form, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if form == _EXTENSIBLE and len(chunk) >= 26:
        form = struct.unpack_from("<H", chunk, 24)[0]
    if (form, bits) not in _FORMS or channels not in (1, 2) or rate not in _RATES:
        text = f"a WAV of {channels} channels, {rate} Hz, {bits} bits, format {form}; "
        raise WaveError(text + "one or two channels of 16, 24 or 32 bits or float32, 8 to 48 kHz, are taken")
    return Layout(rate, channels, form, bits)


def _announced(content_type: str) -> Layout:
    """The layout that an answer's Content-Type names. Raises WaveError when it names no audio."""
    kind, *options = (part.strip().lower() for part in content_type.split(";"))
    if kind.startswith(_NO_SOUND) or kind.endswith(("+json", "+xml")):
        raise WaveError(f"its Content-Type is {kind[:60]!r}")
    given = dict(option.split("=", 1) for option in options if "=" in option)
    rate, channels = given.get("rate", ""), given.get("channels", "1")
    if kind not in _PCM_TYPES:
        return Layout()
    if channels not in ("1", "2"):
        raise WaveError(f"its Content-Type says {channels[:20]!r} channels")
    known = rate.isascii() and rate.isdigit() and len(rate) < 6 and int(rate) in _RATES
    return Layout(int(rate) if known else PCM_RATE, int(channels))
