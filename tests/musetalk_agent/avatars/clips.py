"""Clips made in code: the demo avatar's face, packed in every way that people and strangers pack them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from musetalk_agent.avatars.library import DEMO_ASSET
from musetalk_agent.media_types import Pixels


def face(side: int = 256) -> Pixels:
    """One frontal face, about 0.37 of the side wide, BGR."""
    picture = cv2.imread(str(DEMO_ASSET))
    assert picture is not None
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def moving(count: int, side: int = 256, step: float = 1.0) -> list[Pixels]:
    """The face, each frame `step` pixels further to the right."""
    picture = face(side)
    return [
        np.asarray(
            cv2.warpAffine(
                picture, np.array([[1, 0, k * step], [0, 1, 0]]), (side, side), borderMode=cv2.BORDER_REPLICATE
            ),
            np.uint8,
        )
        for k in range(count)
    ]


def flat(value: int = 127, width: int = 320, height: int = 240) -> Pixels:
    """A picture of one grey."""
    return np.full((height, width, 3), value, np.uint8)


def noise(width: int = 320, height: int = 240) -> Pixels:
    """A picture of noise, the same each time."""
    return np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)


def encoded(picture: np.ndarray, suffix: str = ".png") -> bytes:
    """A picture as a file."""
    return bytes(cv2.imencode(suffix, picture)[1])


def archive(entries: Sequence[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of named bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, body in entries:
            file.writestr(name, body)
    return out.getvalue()


def frames_zip(pictures: Sequence[Pixels], name: str = "frame_{}.png") -> bytes:
    """A zip of frames, named without leading zeros."""
    suffix = Path(name).suffix
    return archive(
        [(name.format(k), encoded(picture, suffix)) for k, picture in enumerate(pictures)], zipfile.ZIP_STORED
    )


def video(
    pictures: Sequence[Pixels],
    *,
    times_ms: Sequence[int] | None = None,
    container: str = "mp4",
    codec: str = "libx264",
    clockwise: int = 0,
) -> bytes:
    """A video at 25 fps, or with a frame at each of `times_ms`; `clockwise` degrees are left to the player to turn."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000) if codec != "mpeg1video" else Fraction(1, 25)
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.time_base = stream.codec_context.time_base
            if codec == "mpeg1video":
                frame.pts = k
            else:
                frame.pts = times_ms[k] if times_ms else k * 40
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return turned(out.getvalue(), pictures[0].shape[0]) if clockwise == 90 else out.getvalue()


def turned(mp4: bytes, height: int) -> bytes:
    """The same MP4 whose track header asks for a quarter turn clockwise, as phones write it."""
    at = mp4.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, height << 16, 0, 1 << 30)
    return mp4[:at] + matrix + mp4[at + 36 :]
