"""Parts of films as the agent's encoder makes them, made in this process, and what can be seen and heard in a film."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cache

import av
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.http import FilmEntry
from musetalk_agent.publishers.film.worker import PIECE, encode
from musetalk_agent.publishers.stream.encoder import QueuedAudio, QueuedFrame
from musetalk_agent.publishers.stream.records import audio_record, end_record, frame_head

RATE, FPS, WIDTH, HEIGHT = 48_000, 25, 64, 64
BURST_S = 0.08
EVERY_S = 0.5
"""A white picture and a tone begin together so often, from `EVERY_S / 2` on."""


@dataclass(frozen=True)
class Part:
    """A header, the fragments that follow, and what the encoder said of its time."""

    header: bytes
    fragments: list[bytes]
    clocks: list[bytes]


def picture(at: float, begun: float = 0.0) -> VideoFrame:
    """White while a tone is heard, else black."""
    white = _loud(at - begun + 0.5 / FPS)
    planes = np.full(WIDTH * HEIGHT * 3 // 2, 128, np.uint8)
    planes[: WIDTH * HEIGHT] = 235 if white else 16
    return VideoFrame(planes, WIDTH, HEIGHT, 0)


def sound(at: float, samples: int, begun: float = 0.0) -> NDArray[np.int16]:
    """The tones from `at` on."""
    times = at - begun + np.arange(samples) / RATE
    loud = np.array((times - EVERY_S / 2) % EVERY_S < BURST_S) & (times >= EVERY_S / 2)
    return (12_000 * np.sin(2 * np.pi * 1000 * times) * loud).astype(np.int16)


def _loud(at: float) -> bool:
    return at >= EVERY_S / 2 and (at - EVERY_S / 2) % EVERY_S < BURST_S


@cache
def part(seconds: float = 3.0, *, skip_idle: bool = False) -> Part:
    """So much of tones and pictures in step."""
    source, target = io.BytesIO(), io.BytesIO()
    shape = {"width": WIDTH, "height": HEIGHT, "fps": FPS, "bitrate": 1_000_000}
    source.write(json.dumps({"shape": shape, "skip_idle": skip_idle}).encode() + b"\n")
    for number in range(round(seconds * FPS)):
        at = number / FPS
        source.write(audio_record(QueuedAudio(at, sound(at, RATE // FPS))))
        frame = picture(at)
        source.write(frame_head(QueuedFrame(at, frame)) + frame.i420.tobytes())
    source.write(end_record())
    source.seek(0)
    encode(source, target)
    return pieces(target.getvalue())


def pieces(output: bytes) -> Part:
    """What the worker wrote, taken apart."""
    found: dict[FilmEntry, list[bytes]] = {kind: [] for kind in FilmEntry}
    at = 0
    while at < len(output):
        kind, size = PIECE.unpack_from(output, at)
        found[FilmEntry(kind)].append(output[at + PIECE.size : at + PIECE.size + size])
        at += PIECE.size + size
    (header,) = found[FilmEntry.HEADER]
    assert found[FilmEntry.END] == [b""]
    return Part(header, found[FilmEntry.FRAGMENT], found[FilmEntry.CLOCK])


@dataclass(frozen=True)
class Watched:
    """What a film shows: times of frames (s), their brightness; the sound without its gaps, at `RATE`."""

    times: list[float]
    white: list[float]
    pcm: NDArray[np.float32]

    @property
    def flashes(self) -> list[float]:
        """When the picture turns white."""
        pairs = zip(self.white, self.white[1:], strict=False)
        return [self.times[i + 1] for i, (before, after) in enumerate(pairs) if before < 100 <= after]

    @property
    def bursts(self) -> list[float]:
        """When a tone begins."""
        loud = np.flatnonzero(np.abs(self.pcm) > 0.08)
        if not len(loud):
            return []
        return [float(at) / RATE for at in loud[np.insert(np.diff(loud) > RATE // 10, 0, True)]]

    @property
    def skews_ms(self) -> list[float]:
        """How much later each flash is than the nearest tone."""
        return [1000 * min((flash - burst for burst in self.bursts), key=abs) for flash in self.flashes]


def watch(film: bytes) -> Watched:
    """Decodes a film, or the beginning of one. Raises FFmpegError for what does not play."""
    times, white, heard = [], [], []
    with av.open(io.BytesIO(film)) as container:
        for frame in container.decode(video=0):
            times.append(float(frame.time))
            white.append(float(frame.to_ndarray(format="gray").mean()))
    with av.open(io.BytesIO(film)) as container:
        heard = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return Watched(times, white, np.concatenate(heard) if heard else np.zeros(0, np.float32))
