"""The audio track of a dub: the new voice, cut at the film's end, and where it is wanted the footage's other sounds under it.

A stem (the footage's sound without its voices) is mixed in as it is. The footage's own sound is lowered wherever it or the new
voice speaks, so that the old voice stays a murmur and music and rooms come back between.
"""

from __future__ import annotations

import math
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pcm
from musetalk_agent.renders.sounds import Sound
from musetalk_agent.tools.audio_file import AudioFile

_BLOCK = 1 << 14
DUCKED = 10 ** (-20 / 20)
"""What is left of the footage's sound under speech: 20 dB less."""
_RAMP_S = 0.15
Levels = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""The share of the background that is heard at each time, seconds of the film."""


@dataclass(frozen=True)
class Background:
    """What is heard beside the new voice.

    Args:
        file: the sound.
        starts_s: when its first sample is heard, in seconds of the film; before 0 for one that began earlier.
        levels: its share over time.
    """

    file: AudioFile
    starts_s: float
    levels: Levels


def full(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The levels of a stem: all of it."""
    return np.ones(len(times))


def ducked(speech: NDArray[np.bool_], step_s: float) -> Levels:
    """Levels that fall to `DUCKED` around speech: `speech` bool `[n]` of stretches of `step_s` from the film's beginning."""
    reach = max(1, round(_RAMP_S / step_s))
    near = np.convolve(speech.astype(np.float64), np.ones(2 * reach + 3), "same") > 0
    ramp = np.convolve(np.pad(near.astype(np.float64), reach, mode="edge"), np.ones(2 * reach + 1), "valid")
    level = 1 - (1 - DUCKED) * ramp / (2 * reach + 1)
    at = (np.arange(len(level)) + 0.5) * step_s
    return lambda times: np.interp(times, at, level) if len(level) else np.ones(len(times))


def write_film_sound(voice: Sound, film_s: Fraction, background: Background | None, target: Path) -> Sound:
    """Writes the film's sound, int16: no longer than the film, and with a background as long. Raises AudioUnreadable, OSError."""
    rate = voice.rate if background is None else max(voice.rate, background.file.rate)
    channels = voice.channels if background is None else max(voice.channels, background.file.channels)
    samples = math.floor(film_s * rate)
    if background is None:
        samples = min(samples, voice.samples)
    made = target.with_name(f".{target.name}")
    spoken = _SampleReader(_blocks_of(voice, rate, channels), channels)
    other = None if background is None else _SampleReader(_placed(background, rate, channels), channels)
    with wave.open(str(made), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        for at in range(0, max(1, samples), _BLOCK):
            count = max(1, min(_BLOCK, samples - at))
            block = spoken.take(count).astype(np.float64)
            if background is not None and other is not None:
                times = (np.arange(at, at + count) + 0.5) / rate
                block += other.take(count) * background.levels(times)[:, None]
            file.writeframesraw(np.clip(np.rint(block), -32768, 32767).astype("<i2").tobytes())
    made.replace(target)
    return Sound.open(target)


def _blocks_of(voice: Sound, rate: int, channels: int) -> Iterator[Pcm]:
    if (voice.rate, voice.channels) == (rate, channels):
        return voice.blocks()
    return AudioFile.open(voice.path).blocks(rate, channels)


def _placed(background: Background, rate: int, channels: int) -> Iterator[Pcm]:
    """The background from the film's first sample on."""
    skip = round(-background.starts_s * rate)
    while skip < 0:
        count = min(_BLOCK, -skip)
        yield np.zeros((count, channels), np.int16)
        skip += count
    for block in background.file.blocks(rate, channels):
        if skip < len(block):
            yield block[skip:]
        skip = max(0, skip - len(block))


class _SampleReader:
    """Blocks of any length, taken in any other; silence after their end."""

    def __init__(self, blocks: Iterator[Pcm], channels: int) -> None:
        self._blocks, self._left = blocks, np.zeros((0, channels), np.int16)

    def take(self, count: int) -> Pcm:
        while len(self._left) < count:
            block = next(self._blocks, None)
            if block is None:
                missing = count - len(self._left)
                self._left = np.concatenate([self._left, np.zeros((missing, self._left.shape[1]), np.int16)])
                break
            self._left = np.concatenate([self._left, block])
        taken, self._left = self._left[:count], self._left[count:]
        return taken
