"""The footage of a dub, frame by frame: its own planes where they are 8 bits in 4:2:0, and a BGR picture of them to look at.

A frame keeps its place, its time and its pixels. What cannot stay as it is is said here: interlaced frames are deinterlaced, frames
that lie are set upright, an odd row or column is cut off, other pixel formats become 8 bits in 4:2:0, and HDR becomes BT.709. The
result of that is what the film has in frames without a dubbed mouth, bit for bit before encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame as DecodedFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Interpolation

from musetalk_agent.avatars.frame_conversion import FrameConverter, frame_orientation
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import VIDEOS, MediaKind, sniff_file
from musetalk_agent.avatars.tone_mapping import needs_mapping
from musetalk_agent.avatars.video import open_track
from musetalk_agent.avatars.video_decoder import ClipFrame, decoding_errors
from musetalk_agent.errors import AvatarError, AvatarTooLarge
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.renders.film_parts import Colours

_PLAIN_FORMATS = frozenset({"yuv420p", "yuvj420p"})
_LEAD_FRAMES = 8
"""Decoded before the first frame that is wanted: a deinterlacer looks at its neighbours."""
_EARLIER_S = (0, 10)
"""How much before the wanted frame a file is entered: where the first try comes too late, the next one is made."""
_SAMPLES_A_SECOND = 1000
"""Entries of a file's index for each second that is allowed: pictures, sound and edits."""
_BT709 = Colours(1, 1, 1, 1)
_Frames = Iterator["FootageFrame"]


def footage_limits(seconds: float, size_bytes: int) -> AvatarLimits:
    """What footage may cost, beside what a frame of an avatar's clip may."""
    return replace(
        AvatarLimits(),
        source_bytes=size_bytes,
        fetch_seconds=3600.0,
        video_seconds=seconds,
        video_samples=round(seconds * _SAMPLES_A_SECOND) + 100_000,
    )


@dataclass(frozen=True)
class FootageFrame:
    """A frame of the footage.

    Args:
        stamp: its time in seconds, as the file has it.
        duration: how long the file says that it is shown, seconds; 0 where it does not.
        planes: I420, uint8 `[height·3/2, width]`, in the colours `colours`.
        aspect: width of a pixel by its height.
        bgr: makes the same pixels to look at, uint8 BGR `[height, width, 3]`; raises AvatarUndecodable.
    """

    stamp: Fraction
    duration: Fraction
    planes: Pixels
    colours: Colours
    aspect: Fraction
    bgr: Callable[[], Pixels]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, both even."""
        return self.planes.shape[1], self.planes.shape[0] * 2 // 3


@dataclass(frozen=True)
class Footage:
    """A file of footage, which may be read from any frame on.

    Args:
        path: the file.
        limits: of `footage_limits`.
    """

    path: Path
    limits: AvatarLimits

    def frames(self, start: int = 0, stamps: Sequence[Fraction] = ()) -> _Frames:
        """Frames in order, from number `start` on. `stamps` are the times of all frames, which it needs to begin anywhere else.

        Raises ProblemError `video_unreadable`, `video_too_long`.
        """
        with footage_errors(self.limits):
            kind = self._kind()
            if start and kind is not MediaKind.AVI:  # its times are counted, from the first frame on
                lead = stamps[max(0, start - _LEAD_FRAMES)]
                for earlier in _EARLIER_S:
                    frames = self._read(kind, max(stamps[0], lead - earlier))
                    if (first := _from(frames, stamps[start])) is not None:
                        yield first
                        yield from frames
                        return
            frames = self._read(kind, None)
            for _ in range(start):
                next(frames, None)
            yield from frames

    def expected(self) -> int:
        """How many frames the file's header promises; 0 where it does not say. Raises as `frames` does."""
        with footage_errors(self.limits), open_track(self.path, self._kind(), self.limits) as (track, _):
            return track.expected_frames

    def _kind(self) -> MediaKind:
        kind = sniff_file(self.path)
        if kind not in VIDEOS:
            text = f"The file is no video that is read here: it looks like {kind.value}. Export it as MP4 (H.264)."
            raise ProblemError(ErrorCode.VIDEO_UNREADABLE, text, field="video_url", value=kind.value)
        return kind

    def _read(self, kind: MediaKind, start: Fraction | None) -> _Frames:
        with open_track(self.path, kind, self.limits) as (track, converter), decoding_errors():
            shaper = _Shaper(converter, track.aspect)
            seen = False
            for timed in track.stamped_frames(start):
                yield shaper.frame(timed)
                seen = True
                del timed
            if not seen and start is None:
                raise track.no_frame_error()


class _Shaper:
    """Makes frames of one size of what is decoded."""

    def __init__(self, converter: FrameConverter, aspect: Fraction) -> None:
        self._converter, self._aspect = converter, aspect
        self._coded: tuple[int, int] | None = None

    def frame(self, timed: ClipFrame) -> FootageFrame:
        frame = timed.frame
        self._coded = self._coded or (frame.width, frame.height)
        if (frame.width, frame.height) != self._coded:
            frame = frame.reformat(width=self._coded[0], height=self._coded[1])
        turn = frame_orientation(frame)
        aspect = 1 / self._aspect if turn.swaps else self._aspect
        if _needs_picture(frame):
            picture = _even(self._picture(frame))
            planes = native_planes(picture, _BT709)
            return FootageFrame(timed.time, timed.duration, planes, _BT709, aspect, lambda: picture)
        plain = frame
        if frame.format.name not in _PLAIN_FORMATS:
            flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
            plain = frame.reformat(format="yuv420p", interpolation=flags, dst_color_range=frame.color_range)
        full = frame.format.name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
        colours = Colours(frame.colorspace, 2 if full else 1, frame.color_primaries, frame.color_trc)
        halves = plain.height // 2, plain.width // 2
        shapes = ((2 * halves[0], 2 * halves[1]), halves, halves)
        parts = [turn.apply(_plane(each, shape)) for each, shape in zip(plain.planes, shapes, strict=True)]
        width = parts[0].shape[1]
        planes = np.concatenate([part.reshape(-1) for part in parts]).reshape(-1, width)
        return FootageFrame(timed.time, timed.duration, planes, colours, aspect, lambda: _even(self._picture(frame)))

    def _picture(self, frame: DecodedFrame) -> Pixels:
        return self._converter.picture(frame, self._converter.size(frame))


def _needs_picture(frame: DecodedFrame) -> bool:
    """Whether a frame has to go through a picture: HDR, alpha, and what is no YUV."""
    if needs_mapping(frame.color_trc, frame.color_primaries) or not frame.format.name.startswith("yuv"):
        return True
    return any(part.is_alpha for part in frame.format.components)


def native_planes(bgr: Pixels, colours: Colours) -> Pixels:
    """I420 of a picture with even sides, uint8 `[h·3/2, w]`, in given colours."""
    frame = DecodedFrame.from_ndarray(bgr, format="bgr24")
    made = frame.reformat(format="yuv420p", dst_colorspace=colours.matrix, dst_color_range=colours.range)
    return np.asarray(made.to_ndarray(), np.uint8)


def _even(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    return np.asarray(np.ascontiguousarray(pixels[: height // 2 * 2, : width // 2 * 2]), np.uint8)


def _plane(plane: VideoPlane, shape: tuple[int, int]) -> Pixels:
    """A plane's values, the first rows and columns of `shape`: what an odd side has too much is left out."""
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
    return lines[: shape[0], : shape[1]]


@contextmanager
def footage_errors(limits: AvatarLimits) -> Iterator[None]:
    """Turns what clips of avatars are refused with into what footage is. Raises ProblemError."""
    try:
        yield
    except AvatarTooLarge as error:
        if error.limit == limits.video_seconds:
            text = f"{error.detail} DUB_SECONDS of the agent sets that; cut the video, or raise it."
            raise ProblemError(
                ErrorCode.VIDEO_TOO_LONG, text, field="video_url", limit=error.limit, value=error.value
            ) from error
        raise ProblemError(ErrorCode.VIDEO_UNREADABLE, error.detail, field="video_url") from error
    except AvatarError as error:
        raise ProblemError(ErrorCode.VIDEO_UNREADABLE, error.detail, field="video_url", value=error.value) from error
    except MemoryError as error:
        text = "The video needs more memory to decode than there is; scale it down, or export it as H.264 (MP4)."
        raise ProblemError(ErrorCode.VIDEO_UNREADABLE, text, field="video_url") from error


def _from(frames: _Frames, stamp: Fraction) -> FootageFrame | None:
    """Skips to the frame of this time; None where it does not come."""
    with suppress(AvatarError):
        for frame in frames:
            if frame.stamp >= stamp:
                return frame if frame.stamp == stamp else None
    return None
