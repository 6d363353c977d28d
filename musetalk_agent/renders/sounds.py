"""The sound of a film: any file that FFmpeg reads, written once as int16 WAV, of which any stretch can be read."""

from __future__ import annotations

import secrets
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musetalk_agent.media_types import FEATURE_RATE, Pcm
from musetalk_agent.resample import Resampler
from musetalk_agent.tools.audio_file import AudioFile, AudioUnreadable

_BLOCK = 1 << 14
_WARM_S = 0.1  # a resampler hears so much before the first sample that is asked for


@dataclass(frozen=True)
class Sound:
    """A WAV of int16: `rate` samples per second, 1 or 2 `channels`, `samples` of each, 1 or more."""

    path: Path
    rate: int
    channels: int
    samples: int

    @classmethod
    def open(cls, path: Path) -> Sound:
        """Raises AudioUnreadable, for a file that is not there too."""
        try:
            with wave.open(str(path), "rb") as file:
                if file.getsampwidth() != 2 or file.getnchannels() > 2 or not file.getnframes():
                    raise AudioUnreadable(f"{path} holds no int16 sound of one or two channels.")
                return cls(path, file.getframerate(), file.getnchannels(), file.getnframes())
        except (wave.Error, EOFError, OSError) as error:
            raise AudioUnreadable(f"{path} cannot be read: {error}.") from error

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples / self.rate

    def blocks(self) -> Iterator[Pcm]:
        """int16 `[n, channels]`, a few thousand samples at a time."""
        with wave.open(str(self.path), "rb") as file:
            while block := file.readframes(_BLOCK):
                yield np.frombuffer(block, "<i2").reshape(-1, self.channels)


class FeatureSound:
    """A sound as features read it, from any sample on: mono at 16 kHz. A context manager; not thread-safe.

    Reads that follow each other are resampled as one stream.
    """

    def __init__(self, sound: Sound) -> None:
        self._sound = sound
        self._file = wave.open(str(sound.path), "rb")
        self._resampler: Resampler | None = None
        self._ready: Pcm = np.zeros(0, np.int16)
        self._at = 0

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        self._file.close()

    def read(self, start: int, end: int) -> Pcm:
        """int16 `[end - start]` from sample `start` on at 16 kHz; fewer where the sound ends."""
        if self._resampler is None or start != self._at:
            self._seek(start)
        while len(self._ready) < end - start and self._more():
            pass
        part, self._ready = self._ready[: end - start], self._ready[end - start :]
        self._at = start + len(part)
        return part

    def _seek(self, start: int) -> None:
        rate = self._sound.rate
        warm = min(start, round(_WARM_S * FEATURE_RATE))
        self._file.setpos(min(self._sound.samples, (start - warm) * rate // FEATURE_RATE))
        self._resampler = Resampler(rate, FEATURE_RATE)
        self._ready = np.zeros(0, np.int16)
        while len(self._ready) < warm and self._more():
            pass
        self._ready = self._ready[warm:]

    def _more(self) -> bool:
        """Reads a block; False when there is no more."""
        if self._resampler is None:
            return False
        block = np.frombuffer(self._file.readframes(_BLOCK), "<i2").reshape(-1, self._sound.channels)
        if len(block):
            mono = block[:, 0] if self._sound.channels == 1 else block.mean(axis=1).astype(np.int16)
            self._ready = np.concatenate([self._ready, self._resampler.push(mono)])
            return True
        self._ready = np.concatenate([self._ready, self._resampler.flush()])
        self._resampler = None
        return False


def lengthen(path: Path, samples: int) -> None:
    """Adds silence to a sound, whole or not at all, until it has so many samples. A longer one stays. Raises AudioUnreadable."""
    sound = Sound.open(path)
    if sound.samples >= samples:
        return
    with _whole(path, sound.channels, sound.rate) as file:
        for block in sound.blocks():
            file.writeframesraw(block.tobytes())
        file.writeframesraw(bytes(2 * sound.channels * (samples - sound.samples)))


def write_sound(source: Path, target: Path, longest_s: float) -> Sound:
    """Converts a file of any kind into `target`, whole or not at all. Raises AudioUnreadable, for one that is too long too."""
    audio = AudioFile.open(source)
    if audio.seconds > longest_s:
        raise AudioUnreadable(f"The sound has {audio.seconds:.0f} s; a film has at most {longest_s:g} s.")
    with _whole(target, audio.channels, audio.rate) as file:
        for block in audio.blocks():
            file.writeframesraw(np.ascontiguousarray(block, "<i2").tobytes())
    return Sound.open(target)


@contextmanager
def _whole(target: Path, channels: int, rate: int) -> Iterator[wave.Wave_write]:
    """A WAV file of int16 samples that takes its place when it is written, and leaves nothing where that fails."""
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with wave.open(str(made), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            yield file
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)
