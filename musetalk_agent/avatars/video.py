"""Video clips by PyAV: upright frames at the session's rate, picked by their timestamps.

The bytes come from a file object, the container format is the one that was sniffed, and anything FFmpeg wants to open beside
it (playlists, external tracks) is refused: no path or address out of a clip is ever followed. `video_decoder` has the frames in
order of time, `frame_conversion` makes images of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import NoReturn, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame as DecodedFrame
from av.video.stream import VideoStream

from musetalk_agent.avatars.container_index import check_index, matroska_aperture, mp4_apertures
from musetalk_agent.avatars.frame_conversion import Aperture, FrameConverter, StreamMetadata
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import MediaKind
from musetalk_agent.avatars.video_decoder import CODECS, VideoTrackDecoder, decoding_errors
from musetalk_agent.errors import AvatarUndecodable
from musetalk_agent.media_types import Pixels

_DEMUXERS = {
    MediaKind.MP4: "mov",
    MediaKind.WEBM: "matroska",
    MediaKind.MPEG: "mpeg",
    MediaKind.MPEG_TS: "mpegts",
    MediaKind.AVI: "avi",
}
_SHAPE_CHANGE = 0.02
"""A clip may change its size on the way, as browsers' recordings do, but its shape by no more than this share."""
Allow = Callable[[int], object]


class VideoClip:
    """An open clip. Its frames are read once, after its size is known.

    `size` is the width and height at which a player shows it.
    """

    def __init__(self, track: VideoTrackDecoder, converter: FrameConverter, fps: int, allow: Allow) -> None:
        self._track, self._converter = track, converter
        self._fps, self._allow = fps, allow
        self._frames = track.frames()
        with decoding_errors():
            self._first = next(self._frames, None)
        if self._first is None:
            raise track.no_frame_error()
        self.size = converter.size(self._first.frame)

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """What is wrong with the clip, as codes and sentences; whole after the last frame."""
        return self._track.warnings()

    def frames(self, size: tuple[int, int]) -> Generator[Pixels]:
        """Frames at the session's rate: for time `k/fps` the newest frame at or before it.

        Each is uint8 BGR `[h, w, 3]` of `size` (width, height), with alpha as a fourth channel where that is kept; a pixel a side
        larger where that is the clip's own size. A frame that serves several times is the same array each time.

        Raises:
            MemoryError: FFmpeg got none.
            AvatarUndecodable: the video changes its shape on the way.
            AvatarTooLarge: too many pixels or seconds.
        """
        self._allow(size[0] * size[1])
        with decoding_errors():
            yield from self._resampled(size)

    def _resampled(self, size: tuple[int, int]) -> Iterator[Pixels]:
        made, step, end = 0, Fraction(1, self._fps), Fraction(0)
        shown: Pixels | DecodedFrame | None = None
        timed, self._first = self._first, None
        while timed is not None:
            while shown is not None and made * step < timed.time:
                shown = self._picture(shown, size)
                yield shown
                made += 1
            end, shown, timed = timed.time + timed.duration, timed.frame, None
            if made * step < end:  # it is about to be shown, and its pixels are smaller than the frame
                shown = self._picture(shown, size)
            timed = next(self._frames, None)
        assert shown is not None
        pixels = self._picture(shown, size)
        while made * step < end or not made:
            yield pixels
            made += 1

    def _picture(self, frame: Pixels | DecodedFrame, size: tuple[int, int]) -> Pixels:
        """The frame's pixels; as they are, where it is pixels already."""
        if isinstance(frame, np.ndarray):
            return frame
        width, height = self._converter.size(frame)
        if abs(width * self.size[1] / (height * self.size[0]) - 1) > _SHAPE_CHANGE:
            raise AvatarUndecodable(
                f"The video changes its size from {self.size[0]}×{self.size[1]} to {width}×{height} on the way; cut it "
                "where it does, or export it at one size.",
                value=f"{width}x{height}",
            )
        return self._converter.picture(frame, size)


@contextmanager
def open_clip(
    path: Path,
    kind: MediaKind,
    fps: int,
    limits: AvatarLimits,
    allow: Allow = lambda pixels: None,
    *,
    keep_alpha: bool = False,
) -> Iterator[VideoClip]:
    """Opens a clip and decodes its first frame. Audio is ignored.

    Args:
        path: the file.
        kind: its container.
        fps: rate of the frames wanted.
        limits: what it may cost.
        allow: called with the pixels of a frame before anything of its size is decoded.
        keep_alpha: whether frames have their alpha as a fourth channel.

    Raises:
        MemoryError: FFmpeg got none.
        AvatarUndecodable: not a video of a codec that is accepted, or nothing of it can be decoded.
        AvatarTooLarge: too many pixels or seconds.
        AvatarEmpty: no frame in it.
    """
    apertures: dict[int, Aperture] = {}
    if kind is MediaKind.MP4:
        check_index(path, limits)
        apertures = mp4_apertures(path)
    with _opened(path, kind, limits) as container:
        with decoding_errors():
            track = VideoTrackDecoder(container, kind, limits, allow)
        aperture = matroska_aperture(path) if kind is MediaKind.WEBM else apertures.get(track.stream.id)
        metadata = _stream_metadata(path, kind, limits, track.stream.index) if track.by_libvpx else None
        converter = FrameConverter(track.aspect, aperture, metadata, keep_alpha=keep_alpha)
        yield VideoClip(track, converter, fps, allow)


@contextmanager
def open_track(path: Path, kind: MediaKind, limits: AvatarLimits) -> Iterator[tuple[VideoTrackDecoder, FrameConverter]]:
    """Opens a video for its frames as they are coded, and what makes upright BGR of them, pixel by pixel: whether these are square,
    and which part of them is shown, is left to the caller. Raises as `open_clip` does, but for `AvatarEmpty` of a track that has no
    frame.
    """
    if kind is MediaKind.MP4:
        check_index(path, limits)
    with _opened(path, kind, limits) as container:
        with decoding_errors():
            track = VideoTrackDecoder(container, kind, limits, lambda pixels: None)
        metadata = _stream_metadata(path, kind, limits, track.stream.index) if track.by_libvpx else None
        yield track, FrameConverter(metadata=metadata)


@contextmanager
def _opened(path: Path, kind: MediaKind, limits: AvatarLimits) -> Iterator[InputContainer]:
    container_options = {"max_streams": str(limits.video_tracks), "codec_whitelist": ",".join(sorted(CODECS))}
    if kind is MediaKind.MP4:
        container_options["enable_drefs"] = "0"
    with path.open("rb") as file:
        with decoding_errors():
            container = cast(
                "InputContainer",
                av.open(
                    file,
                    format=_DEMUXERS[kind],
                    container_options=container_options,
                    options={"max_pixels": str(limits.picture_pixels)},
                    io_open=_refuse,
                ),
            )
        with container:
            yield container


def _stream_metadata(path: Path, kind: MediaKind, limits: AvatarLimits, stream_index: int) -> StreamMetadata | None:
    """What the file states about a track's frames: as FFmpeg's own decoder puts it into the first whole frame. None where that
    decoder gives no frame. The file is opened for this alone, so that no memory of it stays."""
    with _opened(path, kind, limits) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        stream.codec_context.thread_count = 1
        with suppress(AvatarUndecodable), decoding_errors():
            for packet in container.demux(stream):
                with suppress(av.error.InvalidDataError):
                    for frame in packet.decode():
                        return StreamMetadata.of(frame)
    return None


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise AvatarUndecodable("The video refers to another file or address, which is never followed.")
