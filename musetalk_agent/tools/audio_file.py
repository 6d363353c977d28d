"""Audio files of any kind that FFmpeg reads, block by block: for `render` and `measure-sync`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer

from musetalk_agent.media_types import Pcm

KEPT_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Rates (Hz) that AAC and the pipeline both take; audio at another one is converted to the last of them."""


class AudioUnreadable(Exception):
    """The file is not there, is damaged, or holds no audio; the message says which."""


@dataclass(frozen=True)
class AudioFile:
    """The first audio track of a file, decoded anew by every call of `blocks`.

    Args:
        path: the file; a video with audio will do.
        rate: samples per second of `blocks`: the file's own where it is one of `KEPT_RATES`, else 48 kHz.
        channels: 1 or 2, the file's own; more are mixed down to 2.
        samples: how many `blocks` gives in all, 1 or more.
        start_s: time of the first sample on the file's own time line, in seconds.
    """

    path: Path
    rate: int
    channels: int
    samples: int
    start_s: float

    @classmethod
    def open(cls, path: Path) -> AudioFile:
        """Reads a file through once, to know its length. Raises `AudioUnreadable`."""
        rate = channels = samples = 0
        start = 0.0
        for frame in _frames(path):
            if not rate:
                rate = frame.sample_rate if frame.sample_rate in KEPT_RATES else KEPT_RATES[-1]
                channels = min(2, len(frame.layout.channels))
                start = float((frame.pts or 0) * (frame.time_base or Fraction(0)))
                counter = cls(path, rate, channels, 0, start).converter()
            samples += sum(part.samples for part in counter.resample(_untimed(frame)))
        if rate:
            samples += sum(part.samples for part in counter.resample(None))
        if not samples:
            raise AudioUnreadable(f"{path} holds no sound.")
        return cls(path, rate, channels, samples, start)

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples / self.rate

    def blocks(self, rate: int | None = None, channels: int | None = None) -> Iterator[Pcm]:
        """int16 `[n, channels]`, a few thousand samples at a time, by default as the file has it. Raises `AudioUnreadable`."""
        channels = channels or self.channels
        converter = self.converter(rate, channels)
        for frame in _frames(self.path):
            for part in converter.resample(_untimed(frame)):
                yield _array(part, channels)
        for part in converter.resample(None):
            yield _array(part, channels)

    def converter(self, rate: int | None = None, channels: int | None = None) -> AudioResampler:
        """From the file's frames to packed int16."""
        layout = "mono" if (channels or self.channels) == 1 else "stereo"
        return AudioResampler(format="s16", layout=layout, rate=rate or self.rate)


def mono(file: AudioFile, rate: int) -> Pcm:
    """The whole file as int16 `[n]` at `rate`, channels mixed. Raises `AudioUnreadable`."""
    return np.concatenate([block[:, 0] for block in file.blocks(rate, 1)])


def _frames(path: Path) -> Iterator[AudioFrame]:
    try:
        with path.open("rb") as file, av.open(file) as container:
            source = cast("InputContainer", container)
            if not source.streams.audio:
                raise AudioUnreadable(f"{path} has no sound track.")
            yield from source.decode(source.streams.audio[0])
    except (av.error.FFmpegError, av.error.EOFError, ValueError) as error:
        raise AudioUnreadable(f"{path} is no sound file that can be read, or it is damaged.") from error
    except OSError as error:
        raise AudioUnreadable(f"{path} cannot be read: {error.strerror}.") from error


def _untimed(frame: AudioFrame) -> AudioFrame:
    """Samples follow each other whatever the file's time stamps say: the resampler would complain about gaps."""
    frame.pts = None
    return frame


def _array(frame: AudioFrame, channels: int) -> Pcm:
    return np.asarray(frame.to_ndarray(), np.int16).reshape(-1, channels)
