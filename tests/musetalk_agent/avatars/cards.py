"""Moving pictures whose every property can be read back: a card with coloured corners, a patch of skin and a number in bits.

`card` draws one, `read` reads one, `Film` writes them in any container, codec, depth, matrix and range. Colours become YUV here and
not in FFmpeg, so that a wrong matrix or range in the reader shows.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels

Real = NDArray[np.float64]

RED, GREEN, BLUE, YELLOW = (60, 50, 190), (60, 170, 70), (190, 80, 60), (70, 190, 200)
"""Corners in BGR: top left, top right, bottom left, bottom right; all within every gamut, with room around."""
SKIN = (120, 150, 200)
_GREY = 110
_BITS = 6
BT601, BT709, BT2020 = 5, 1, 9
"""Matrices as H.273 numbers them (601 in its PAL form)."""
LIMITED, FULL = 1, 2
SDR, PQ, HLG = 1, 16, 18
"""Transfer characteristics as H.273 numbers them."""
_LUMA = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593)}
"""Weights of red and blue in the luma (H.273, table 4)."""
_TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""Linear BT.709 as BT.2020 (BT.2087-0)."""
WHITE_NITS = 203.0
"""Diffuse white of HDR (BT.2408-7)."""


def card(number: int, width: int = 160, height: int = 120) -> Pixels:
    """A picture uint8 BGR `[h, w, 3]`: grey, coloured corners, skin in the middle, `number` as white bits along the top."""
    picture = np.full((height, width, 3), _GREY, np.uint8)
    rows, columns = height // 4, width // 4
    picture[:rows, :columns], picture[:rows, -columns:] = RED, GREEN
    picture[-rows:, :columns], picture[-rows:, -columns:] = BLUE, YELLOW
    picture[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = SKIN
    left, step = width * 3 // 8, width // 4 / _BITS
    for bit in range(_BITS):
        level = 220 if number >> bit & 1 else 30
        picture[height // 16 : height // 4, round(left + bit * step) : round(left + (bit + 1) * step)] = level
    return picture


@dataclass(frozen=True)
class Reading:
    """What a card says: its number, and the mean BGR of its corners (row by row) and of its skin."""

    number: int
    corners: tuple[tuple[float, ...], ...]
    skin: tuple[float, ...]

    def colour_error(self) -> float:
        """The worst difference of a channel of the skin, in levels."""
        return max(abs(a - b) for a, b in zip(self.skin, SKIN, strict=True))

    def corner_error(self) -> float:
        """The worst difference of a channel of a corner from where it belongs upright, in levels."""
        wanted = (RED, GREEN, BLUE, YELLOW)
        return max(
            abs(a - b)
            for seen, right in zip(self.corners, wanted, strict=True)
            for a, b in zip(seen, right, strict=True)
        )


def read(picture: Pixels) -> Reading:
    """Reads a card of any size, upright or not (its number only where it is upright)."""
    height, width = picture.shape[:2]
    rows, columns = height // 16, width // 16
    corners = [
        picture[y * height // 16 : y * height // 16 + rows, x * width // 16 : x * width // 16 + columns]
        for y in (1, 14)
        for x in (1, 14)
    ]
    skin = picture[height * 7 // 16 : height * 9 // 16, width * 7 // 16 : width * 9 // 16]
    number = 0
    for bit in range(_BITS):
        column = int(width * 3 / 8 + (bit + 0.5) * width / 4 / _BITS)
        number |= (int(picture[height * 5 // 32, column].mean()) > 125) << bit
    return Reading(number, tuple(_mean(corner) for corner in corners), _mean(skin))


def _mean(part: Pixels) -> tuple[float, ...]:
    return tuple(float(v) for v in part.reshape(-1, 3).mean(0))


@dataclass
class Film:
    """How pictures become a video. `options` are the encoder's; `prepare` may change the stream before the first frame.

    `times_ms` overrides `fps`. `alpha` (uint8 `[h, w]`) goes with a pixel format that has it. `tagged` writes matrix, range,
    transfer and primaries into the stream. `sar` is the shape of a pixel, `matrix` the display matrix (16.16).
    """

    container: str = "mp4"
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    fps: Fraction = Fraction(25)
    times_ms: Sequence[int] | None = None
    matrix: int = BT601
    range: int = LIMITED
    transfer: int = SDR
    primaries: int = 1
    tagged: bool = True
    sar: Fraction | None = None
    turn: int = 0
    hflip: bool = False
    vflip: bool = False
    alpha: Pixels | None = None
    options: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[VideoStream], None] = lambda stream: None

    def of(self, pictures: Sequence[Pixels]) -> bytes:
        """The file of pictures uint8 BGR `[h, w, 3]`."""
        out = io.BytesIO()
        with av.open(out, "w", format=self.container) as file:
            options = dict(self.options)
            if self.codec == "libx265" and len(pictures) < 10:  # x265 leaves DTS unset before it has reordered some
                options["x265-params"] = ":".join(filter(None, [options.get("x265-params"), "bframes=0"]))
            stream = file.add_stream(self.codec, rate=self.fps, options=options)
            assert isinstance(stream, VideoStream)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = self.pix_fmt
            if self.times_ms is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            if self.tagged:
                context = stream.codec_context
                context.colorspace, context.color_range = self.matrix, self.range
                context.color_trc, context.color_primaries = self.transfer, self.primaries
            if self.sar is not None:
                stream.codec_context.sample_aspect_ratio = self.sar
            if self.turn or self.hflip or self.vflip:
                stream.set_display_rotation(self.turn, hflip=self.hflip, vflip=self.vflip)
            self.prepare(stream)
            for k, picture in enumerate(pictures):
                frame = self._frame(picture)
                frame.time_base = Fraction(1, 1000) if self.times_ms is not None else 1 / self.fps
                frame.pts = self.times_ms[k] if self.times_ms is not None else k
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        if self.codec == "libsvtav1":  # it makes root's thread a real-time one
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return out.getvalue()

    def _frame(self, picture: Pixels) -> VideoFrame:
        name = self.pix_fmt
        if name in ("bgr24", "rgb24", "gray"):
            return VideoFrame.from_ndarray(picture, format="bgr24").reformat(format=name)
        if name in ("rgba", "argb", "bgra"):
            assert self.alpha is not None
            rgba = np.dstack([picture[..., ::-1], self.alpha])
            return VideoFrame.from_ndarray(np.ascontiguousarray(rgba), format="rgba").reformat(format=name)
        frame = VideoFrame(picture.shape[1], picture.shape[0], name)
        depth = 10 if name.endswith("10le") else 8
        planes = self._yuv(picture, depth)
        if self.alpha is not None:
            planes = (*planes, self.alpha.astype(np.float64) * ((1 << depth) - 1) / 255)
        for index, (plane, values) in enumerate(zip(frame.planes, planes, strict=True)):
            if index in (1, 2):
                values = _subsampled(values, plane.height, plane.width)
            whole = np.clip(np.rint(values), 0, (1 << depth) - 1).astype(np.uint8 if depth == 8 else "<u2")
            lines = np.zeros((plane.height, plane.line_size), np.uint8)
            raw = whole.view(np.uint8).reshape(plane.height, -1)
            lines[:, : raw.shape[1]] = raw
            plane.update(lines.tobytes())
        if self.tagged:
            frame.colorspace, frame.color_range = self.matrix, self.range
            frame.color_trc, frame.color_primaries = self.transfer, self.primaries
        return frame

    def _yuv(self, picture: Pixels, depth: int) -> tuple[Real, Real, Real]:
        """Y, Cb and Cr of the picture's size, as levels of `depth` bits (H.273, section 8.3)."""
        rgb = _encoded(picture[..., ::-1] / 255.0, self.transfer, self.primaries)
        red, blue = _LUMA[self.matrix]
        luma = rgb @ np.array([red, 1 - red - blue, blue])
        cb, cr = (rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)
        if self.range == FULL:
            top = (1 << depth) - 1
            return luma * top, cb * top + (1 << depth - 1), cr * top + (1 << depth - 1)
        one = 1 << depth - 8
        return (219 * luma + 16) * one, (224 * cb + 128) * one, (224 * cr + 128) * one


def _encoded(rgb: Real, transfer: int, primaries: int) -> Real:
    """sRGB 0 … 1 as the signal of another transfer and gamut, with white at `WHITE_NITS` where the transfer is absolute."""
    if transfer not in (PQ, HLG) and primaries == 1:
        return rgb
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    wide = light @ _TO_2020.T if primaries == BT2020 else light
    if transfer == PQ:  # BT.2100-2, table 4
        power = (np.clip(wide, 0, None) * WHITE_NITS / 10_000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    if transfer == HLG:  # BT.2100-2, table 5, for a display of 1,000 cd/m²
        shown = wide * WHITE_NITS / 1000
        luma = np.maximum(shown @ np.array([0.2627, 0.678, 0.0593]), 1e-9)
        scene = shown * luma[..., None] ** (1 / 1.2 - 1)
        return np.where(
            scene <= 1 / 12,
            np.sqrt(3 * scene),
            0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
        )
    return np.where(wide <= 0.0031308, wide * 12.92, 1.055 * np.clip(wide, 0, None) ** (1 / 2.4) - 0.055)


def _subsampled(values: Real, height: int, width: int) -> Real:
    """Means over the pixels that share a sample of chroma; odd sides repeat their last row and column."""
    down, across = -(-values.shape[0] // height), -(-values.shape[1] // width)
    padded = np.pad(values, ((0, height * down - values.shape[0]), (0, width * across - values.shape[1])), "edge")
    mean: Real = padded.reshape(height, down, width, across).mean((1, 3))
    return mean


def cards(count: int, width: int = 160, height: int = 120) -> list[Pixels]:
    """`count` cards, numbered from 0."""
    return [card(k, width, height) for k in range(count)]


def woven(pictures: Sequence[Pixels]) -> list[Pixels]:
    """Interlaced frames, top field first: each takes its even lines from one picture and its odd ones from the next."""
    frames = []
    for first, second in zip(pictures[::2], pictures[1::2], strict=True):
        frame = first.copy()
        frame[1::2] = second[1::2]
        frames.append(frame)
    return frames


def box(kind: bytes, body: bytes) -> bytes:
    """An MP4 box."""
    return struct.pack(">I4s", len(body) + 8, kind) + body


def with_clap(mp4: bytes, clap: bytes) -> bytes:
    """The MP4 with a clean aperture in its only sample description. Its index must lie behind its data, as muxers leave it."""
    assert mp4.index(b"mdat") < mp4.index(b"moov")
    avcc = mp4.index(b"avcC") - 4
    at = 0
    grown = bytearray(mp4)
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = mp4.index(kind, at) - 4
        (size,) = struct.unpack_from(">I", mp4, at)
        struct.pack_into(">I", grown, at, size + len(clap))
        at += 8
    return bytes(grown[:avcc]) + clap + bytes(grown[avcc:])


def clap(width: int, height: int, right: int, down: int) -> bytes:
    """A clean aperture of this size whose middle lies `right` and `down` of the picture's (ISO/IEC 14496-12, 12.1.4)."""
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 1, down, 1))


def packets(data: bytes) -> list[tuple[int, int]]:
    """Where each picture's bytes lie in a file, and how many they are."""
    with av.open(io.BytesIO(data)) as file:
        found = [(packet.pos or 0, packet.size) for packet in file.demux(file.streams.video[0])]
    return [part for part in found if part[1]]
