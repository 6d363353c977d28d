"""Films that the tests of dubs are made of."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    rate: Fraction = Fraction(25),
    *,
    ticks: Sequence[int] | None = None,
    base: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    sound: np.ndarray | None = None,
    sound_rate: int = 16_000,
    options: dict[str, str] | None = None,
) -> Path:
    """H.264 of frames uint8 BGR; `ticks` are their times in units of `base` where they are not evenly spaced."""
    with av.open(str(path), "w") as film:
        made = film.add_stream(
            "libx264", rate=rate, options={"crf": "14", "preset": "veryfast", "g": "10", **(options or {})}
        )
        made.height, made.width = frames[0].shape[:2]
        made.pix_fmt = pix_fmt
        made.codec_context.time_base = base or 1 / rate
        voice = None if sound is None else film.add_stream("aac", rate=sound_rate, layout="mono")
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24").reformat(format=pix_fmt)
            frame.time_base = base or 1 / rate
            frame.pts = number if ticks is None else ticks[number]
            film.mux(made.encode(frame))
        film.mux(made.encode(None))
        if voice is not None and sound is not None:
            block = av.AudioFrame.from_ndarray(sound.astype(np.int16).reshape(1, -1), format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = sound_rate, 0, Fraction(1, sound_rate)
            film.mux(voice.encode(block))
            film.mux(voice.encode(None))
    return path


def decoded(path: Path) -> tuple[list[Fraction], list[np.ndarray]]:
    """Times and planes of a film's frames as any decoder gives them."""
    times, planes = [], []
    with av.open(str(path)) as film:
        for frame in film.decode(video=0):
            times.append(frame.pts * frame.time_base)
            planes.append(frame.to_ndarray())
    return times, planes


def counted(number: int, width: int = 96, height: int = 72) -> np.ndarray:
    """A picture that no other number has."""
    picture = np.full((height, width, 3), 40 + number % 8 * 20, np.uint8)
    picture[:, : 4 + number % 60] = (200, 20, 90 + number % 100)
    return picture
