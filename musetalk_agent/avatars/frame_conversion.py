"""Converts a decoded frame to the image that a player shows: square pixels, upright, cropped, opaque, sRGB, at the wanted size.

What the container and the stream say of an image is in the frame: FFmpeg puts the display matrix of MP4, Matroska and H.264's
SEI beside it. Pixels are scaled in the step that converts their colours, before anything else looks at them. But planar YUV with
alpha is composited on white as it is: a frame of 4096×4096 as BGRA takes 67 MB and half a second of CPU. YUV is a linear map of
R'G'B', so that the mixture with white is the same in both.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from musetalk_agent.avatars.tone_mapping import HDR, ToneMap, needs_mapping
from musetalk_agent.errors import AvatarUndecodable
from musetalk_agent.media_types import Pixels

_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""Without these swscale is off by one to two levels in green."""
_UNKNOWN, _MATRIX_709, _MATRIX_2020 = 2, 1, 9
"""Two stands for unknown among matrices, transfers and primaries alike (H.273)."""
_MATRIX_STRANGE = {8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE 2085", 14: "ICtCp", 15: "IPT"}
"""Matrices of H.273 that swscale does not know and would take for another."""
_WHITE = _OPAQUE = 255
_STRIP_ROWS = 64
"""Rows that are composited on white at a time: several copies of them are made, which stay in the processor's cache. A multiple of
four: chroma and image are halved."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a player turns an image: rows become columns where `swaps`, then it is mirrored."""

    swaps: bool = False
    mirrors_x: bool = False
    mirrors_y: bool = False

    def apply(self, pixels: Pixels) -> Pixels:
        """The image upright, contiguous."""
        turned = np.swapaxes(pixels, 0, 1) if self.swaps else pixels
        turned = turned[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]
        return cast("Pixels", np.ascontiguousarray(turned))

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after the turn; also before it, of the size after it."""
        return size[::-1] if self.swaps else size


@dataclass(frozen=True, slots=True)
class Aperture:
    """The part of each frame that is shown, in pixels of the frame."""

    left: int
    top: int
    width: int
    height: int


def frame_orientation(frame: VideoFrame) -> Orientation:
    """The turn that the frame's display matrix asks for, to the nearest quarter.

    The matrix maps `(x, y)` to `(a·x + c·y, b·x + d·y)` (libavutil/display.h).
    """
    try:
        # frame.side_data would refer back to the frame, and keep it until the next collection of garbage
        side_data = SideDataContainer(frame)  # type: ignore[call-arg]  # PyAV's stub leaves the argument out
        matrix = bytes(side_data["DISPLAYMATRIX"])
    except KeyError:
        return Orientation()
    except ValueError:  # PyAV has no name for something else that lies beside the frame, and gives the angle alone
        return Orientation(
            frame.rotation in (90, -90), frame.rotation in (-90, 180, -180), frame.rotation in (90, 180, -180)
        )
    a, b, _, c, d = struct.unpack_from("=5i", matrix.ljust(20, b"\0"))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


@dataclass(frozen=True, slots=True)
class StreamMetadata:
    """What a container and a stream say of their images, for frames that do not carry it.

    Numbers of colours are H.273's, `color_range` is FFmpeg's.
    """

    turn: Orientation
    colorspace: int
    color_range: int
    color_trc: int
    color_primaries: int

    @classmethod
    def of(cls, frame: VideoFrame) -> StreamMetadata:
        """What a frame carries."""
        return cls(
            frame_orientation(frame), frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries
        )

    def fill(self, frame: VideoFrame) -> None:
        """Writes into the frame those numbers that it lacks. The range goes with the matrix: libvpx guesses one if it has none."""
        if frame.colorspace == _UNKNOWN:
            frame.colorspace, frame.color_range = self.colorspace, self.color_range
        if frame.color_trc == _UNKNOWN:
            frame.color_trc = self.color_trc
        if frame.color_primaries == _UNKNOWN:
            frame.color_primaries = self.color_primaries


class FrameConverter:
    """Converts the frames of a clip.

    Args:
        aspect: width by height of a pixel.
        aperture: what is shown of a frame; None for all.
        metadata: what is said of frames that do not carry it; None for frames that do.
        keep_alpha: whether the frames' alpha is returned, too.
    """

    def __init__(
        self,
        aspect: Fraction = Fraction(1),
        aperture: Aperture | None = None,
        metadata: StreamMetadata | None = None,
        *,
        keep_alpha: bool = False,
    ) -> None:
        self._keep_alpha = keep_alpha
        self._aspect = aspect
        self._aperture = aperture
        self._metadata = metadata
        self._scaler = VideoReformatter()
        self._tone: ToneMap | None = None
        self._tone_of: tuple[int, ...] = ()
        self._turn = Orientation()
        self._angle: int | None = None

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height at which a player shows the frame. A side grows for pixels that are not square, none shrinks."""
        return self._turn_of(frame).size(self._square(frame))

    def picture(self, frame: VideoFrame, size: tuple[int, int]) -> Pixels:
        """The frame as uint8 BGR `[h, w, 3]` of `size` (width, height); one pixel a side larger where that is its own size. With
        `keep_alpha` it is `[h, w, 4]` where alpha is not opaque all over.

        Raises:
            AvatarUndecodable: its colours are of a kind that is not known here.
        """
        colours = self._colours(frame, size)
        if not self._keep_alpha or not _has_alpha(frame):
            return colours
        shown, alpha = self._shown(frame), self._alpha(frame)
        if alpha.min() == _OPAQUE:
            return colours
        part = alpha[shown.top : shown.top + shown.height, shown.left : shown.left + shown.width]
        upright = self._turn_of(frame).apply(np.asarray(part, np.uint8))
        height, width = colours.shape[:2]
        if upright.shape != (height, width):
            how = cv2.INTER_AREA if width * height < upright.size else cv2.INTER_LINEAR
            upright = np.asarray(cv2.resize(upright, (width, height), interpolation=how), np.uint8)
        return np.dstack([colours, upright])

    def _alpha(self, frame: VideoFrame) -> Pixels:
        """The frame's alpha at its own size, uint8 `[h, w]`."""
        if is_yuva(frame):
            bits = frame.format.components[0].bits
            samples = _samples(frame.planes[3], bits)
            return np.asarray(samples >> (bits - 8), np.uint8) if bits > 8 else np.asarray(samples, np.uint8)
        return self._bgra(frame)[..., 3]

    def _colours(self, frame: VideoFrame, size: tuple[int, int]) -> Pixels:
        turn, shown = self._turn_of(frame), self._shown(frame)
        if self._metadata is not None:
            self._metadata.fill(frame)
        wanted = turn.size(size)
        if self._aspect == 1 and all(0 <= a - b <= 1 for a, b in zip((shown.width, shown.height), wanted, strict=True)):
            wanted = (shown.width, shown.height)
        if is_yuva(frame) and not needs_mapping(frame.color_trc, frame.color_primaries):
            frame = laid_on_white(frame, (frame.width, frame.height) if self._aperture is not None else wanted)
        if _has_alpha(frame):
            pixels = self._on_white(frame)
        elif self._aperture is None:
            return turn.apply(self._converted(frame, wanted))
        else:
            pixels = self._converted(frame, (frame.width, frame.height))
        pixels = pixels[shown.top : shown.top + shown.height, shown.left : shown.left + shown.width]
        if (pixels.shape[1], pixels.shape[0]) != wanted:
            how = cv2.INTER_AREA if wanted[0] * wanted[1] < shown.width * shown.height else cv2.INTER_CUBIC
            pixels = cast("Pixels", cv2.resize(pixels, wanted, interpolation=how))
        return turn.apply(pixels)

    def _turn_of(self, frame: VideoFrame) -> Orientation:
        """The frame's turn. Its matrix is read when its angle changes."""
        if self._metadata is not None:
            return self._metadata.turn
        if frame.rotation != self._angle:
            self._turn, self._angle = frame_orientation(frame), frame.rotation
        return self._turn

    def _shown(self, frame: VideoFrame) -> Aperture:
        """What is shown of the frame; all of it where the aperture does not lie in it."""
        part = self._aperture
        if part is None or part.left + part.width > frame.width or part.top + part.height > frame.height:
            return Aperture(0, 0, frame.width, frame.height)
        return part

    def _square(self, frame: VideoFrame) -> tuple[int, int]:
        shown = self._shown(frame)
        if self._aspect >= 1:
            return round(shown.width * self._aspect), shown.height
        return shown.width, round(shown.height / self._aspect)

    def _on_white(self, frame: VideoFrame) -> Pixels:
        """A frame with alpha at its own size, as BGR."""
        bgra = self._bgra(frame)
        if needs_mapping(frame.color_trc, frame.color_primaries):
            bgra = np.dstack([self._converted(frame, (frame.width, frame.height)), bgra[..., 3]])
        made = np.empty((frame.height, frame.width, 3), np.uint8)
        for top in range(0, frame.height, _STRIP_ROWS):
            rows = slice(top, top + _STRIP_ROWS)
            made[rows] = _opaque(bgra[rows])
        return made

    def _bgra(self, frame: VideoFrame) -> Pixels:
        picture = self._scaler.reformat(_marked(frame), format="bgra", interpolation=_EXACT)
        lines = np.frombuffer(cast("bytes", picture.planes[0]), np.uint8).reshape(frame.height, -1)
        return lines[:, : 4 * frame.width].reshape(frame.height, frame.width, 4)

    def _converted(self, frame: VideoFrame, size: tuple[int, int]) -> Pixels:
        """The frame's pixels at `size`, as BGR."""
        shrinks = size[0] * size[1] < frame.width * frame.height
        how = _EXACT | (Interpolation.AREA if shrinks else Interpolation.BICUBIC)
        frame = _marked(frame)
        mapped = needs_mapping(frame.color_trc, frame.color_primaries)
        picture = self._scaler.reformat(
            frame, width=size[0], height=size[1], format="rgb48le" if mapped else "bgr24", interpolation=how
        )
        if mapped:
            key = (frame.color_trc, frame.color_primaries, *size)
            if self._tone is None or self._tone_of != key:
                self._tone, self._tone_of = ToneMap(*key), key
            picture = self._tone.apply(picture).reformat(format="bgr24")
        return cast("Pixels", picture.to_ndarray())


def _has_alpha(frame: VideoFrame) -> bool:
    return any(part.is_alpha for part in frame.format.components)


def _marked(frame: VideoFrame) -> VideoFrame:
    """The frame with its matrix filled in where it names only its primaries or its transfer."""
    if frame.colorspace in _MATRIX_STRANGE:
        name = _MATRIX_STRANGE[frame.colorspace]
        raise AvatarUndecodable(
            f"The video's colours are coded as {name}, which is not read here; export it as H.264 with BT.709 colours.",
            value=name,
        )
    if frame.colorspace == _UNKNOWN:
        if frame.color_trc in HDR or frame.color_primaries == ColorPrimaries.BT2020:
            frame.colorspace = _MATRIX_2020
        elif ColorTrc.BT709 == frame.color_trc or frame.color_primaries == ColorPrimaries.BT709:
            frame.colorspace = _MATRIX_709
    return frame


def _opaque(bgra: Pixels) -> Pixels:
    """The image composited on white."""
    over = cv2.merge([bgra[..., 3]] * 3)
    return cast("Pixels", _WHITE - cv2.multiply(_WHITE - bgra[..., :3], over, scale=1 / _WHITE))


Samples = NDArray[np.unsignedinteger[Any]]

_FORMATS = re.compile(r"yuva(4(?:20|22|44)p(?:\d+le)?)")
_WHITE_LUMA = 235
"""Of 8 bits in limited range (BT.709-6, table 5)."""


def is_yuva(frame: VideoFrame) -> bool:
    """Whether `laid_on_white` takes frames of this pixel format."""
    return _FORMATS.fullmatch(frame.format.name) is not None


def laid_on_white(frame: VideoFrame, size: tuple[int, int]) -> VideoFrame:
    """The frame on white, without alpha. The frame itself stays as it is: a decoder may still refer to its planes.

    Args:
        frame: of a pixel format that `is_yuva` knows.
        size: width and height that are wanted of it. What is made has the frame's own, or half of it where that is enough.
    """
    halve = all(
        side % 4 == 0 and 2 * wanted <= side for side, wanted in zip((frame.width, frame.height), size, strict=True)
    )
    found = _FORMATS.fullmatch(frame.format.name)
    assert found is not None
    made = VideoFrame(frame.width >> halve, frame.height >> halve, "yuv" + found[1])
    made.colorspace, made.color_range = frame.colorspace, frame.color_range
    made.color_trc, made.color_primaries = frame.color_trc, frame.color_primaries
    bits = frame.format.components[0].bits
    opaque = (1 << bits) - 1
    white = opaque if frame.color_range == ColorRange.JPEG else _WHITE_LUMA << (bits - 8)
    *planes, alpha = (_samples(plane, bits) for plane in frame.planes)
    for whole, plane in zip(planes, made.planes, strict=True):
        _fill(_samples(plane, bits), whole, alpha, white if whole is planes[0] else (opaque + 1) // 2, opaque)
    return made


def _samples(plane: VideoPlane, bits: int) -> Samples:
    """The plane's values `[h, w]`, to be written to."""
    kind = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    lines = np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)
    return lines[:, : plane.width]


def _fill(made: Samples, whole: Samples, alpha: Samples, behind: int, opaque: int) -> None:
    """Writes a plane's values on `behind`, strip by strip.

    Args:
        made: where to, of the plane's size or half of it.
        whole: the plane.
        alpha: of the image's size, which is that of the plane or twice that.
        behind: the plane's value of white.
        opaque: the highest alpha.
    """
    coarse_y, coarse_x = alpha.shape[0] > whole.shape[0], alpha.shape[1] > whole.shape[1]
    halved = made.shape != whole.shape
    for top in range(0, len(whole), _STRIP_ROWS):
        values = whole[top : top + _STRIP_ROWS]
        over = alpha[top << coarse_y : (top + _STRIP_ROWS) << coarse_y]
        if over.min() < opaque:
            values = _mixed(values, _averaged(over, values.shape, coarse_y, coarse_x), behind, opaque)
        if halved:
            values = _resized(values, (values.shape[0] // 2, values.shape[1] // 2))
        made[top >> halved : (top + _STRIP_ROWS) >> halved] = values


def _averaged(alpha: Samples, shape: tuple[int, ...], coarse_y: bool, coarse_x: bool) -> Samples:
    """Means of the alpha over the pixels that share a value of the plane."""
    down, right = (shape[0] << coarse_y) - alpha.shape[0], (shape[1] << coarse_x) - alpha.shape[1]
    if down or right:
        alpha = np.asarray(cv2.copyMakeBorder(alpha, 0, down, 0, right, cv2.BORDER_REPLICATE), alpha.dtype)
    return _resized(alpha, shape) if coarse_y or coarse_x else alpha


def _resized(values: Samples, shape: tuple[int, ...]) -> Samples:
    return np.asarray(cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_AREA), values.dtype)


def _mixed(values: Samples, alpha: Samples, behind: int, opaque: int) -> Samples:
    """Values on `behind`: (v·a + behind·(opaque - a)) / opaque. Either difference is positive, so that none wraps around."""
    above = cv2.multiply(np.maximum(values, behind) - behind, alpha, scale=1 / opaque)
    below = cv2.multiply(behind - np.minimum(values, behind), alpha, scale=1 / opaque)
    return np.asarray(behind + above - below, values.dtype)
