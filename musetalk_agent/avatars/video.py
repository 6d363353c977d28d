"""Video clips by PyAV: upright frames at the session's rate, picked by their timestamps.

The bytes come from a file object, the container format is the one that was sniffed, and anything FFmpeg wants to open beside
it (playlists, external tracks) is refused: no path or address out of a clip is ever followed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NoReturn, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame as DecodedFrame
from av.video.stream import VideoStream

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.mp4_index import check_index
from musetalk_agent.avatars.pictures import check_pixels
from musetalk_agent.avatars.sniff import Kind
from musetalk_agent.errors import AvatarEmpty, AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media import Pixels

_DEMUXERS = {Kind.MP4: "mov", Kind.WEBM: "matroska", Kind.MPEG: "mpeg"}
_CODECS = frozenset(
    "h264 hevc av1 libdav1d libaom-av1 vp8 vp9 libvpx libvpx-vp9 mpeg1video mpeg2video mpeg4 mjpeg prores theora".split()
)
"""Decoders that avatars come in; everything else that FFmpeg knows only widens what a hostile clip can reach."""
_THREADS_MAX = 4
"""Every thread holds frames of its own; more of them do not help a clip of a minute."""
_QUARTER_TURNS = {0: 0, 90: 1, 180: 2, 270: 3}


def video_frames(
    path: Path, kind: Kind, fps: int, limits: AvatarLimits, allow: Callable[[int], object] = lambda pixels: None
) -> Generator[Pixels]:
    """Frames of a clip at `fps`: for time `k/fps` the newest frame at or before it, uint8 BGR `[h, w, 3]`, upright.

    A frame that serves several times is the same array each time. Sound is ignored. `allow` is called with the pixels of a
    frame before anything of its size is decoded.

    Raises:
        MemoryError: FFmpeg got none.
        AvatarUndecodable: not a whole video of a codec that is accepted.
        AvatarTooLarge: too many pixels or seconds.
        AvatarEmpty: no frame in it.
    """
    if kind is Kind.MP4:
        check_index(path, limits)
    container_options = {"max_streams": str(limits.video_tracks), "codec_whitelist": ",".join(sorted(_CODECS))}
    if kind is Kind.MP4:
        container_options["enable_drefs"] = "0"
    try:
        with (
            path.open("rb") as file,
            av.open(
                file,
                format=_DEMUXERS[kind],
                container_options=container_options,
                options={"max_pixels": str(limits.picture_pixels)},
                io_open=_refuse,
            ) as container,
        ):
            source = cast("InputContainer", container)
            yield from _resample(_decoded(source, _stream(source, limits, allow), limits, allow), fps, limits)
    except (av.error.FFmpegError, av.error.EOFError, ValueError, IndexError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise MemoryError from error
        raise AvatarUndecodable("The video cannot be decoded: it is damaged or cut short.") from error


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise AvatarUndecodable("The video refers to another file or address, which is never followed.")


def _stream(container: InputContainer, limits: AvatarLimits, allow: Callable[[int], object]) -> VideoStream:
    if not container.streams.video:
        raise AvatarEmpty("The video has no picture track.")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or context.codec.name not in _CODECS:
        name = "unknown" if context is None else context.codec.name
        raise AvatarUndecodable(f"The video's codec is {name}; use H.264, H.265, VP8, VP9 or AV1.", value=name)
    check_pixels(context.width, context.height, "the video", limits)
    allow(context.width * context.height)
    seconds = (container.duration or 0) / av.time_base
    if seconds > limits.video_seconds:
        raise _too_long(seconds, limits)
    context.options = {"max_pixels": str(limits.picture_pixels)}
    stream.thread_type = "AUTO"
    context.thread_count = min(_THREADS_MAX, os.cpu_count() or 1)
    return stream


def _too_long(seconds: float, limits: AvatarLimits) -> AvatarTooLarge:
    return AvatarTooLarge(
        f"The video lasts {seconds:.1f} s; at most {limits.video_seconds:g} s are allowed.",
        limit=limits.video_seconds,
        value=round(seconds, 1),
    )


def _decoded(
    container: InputContainer, stream: VideoStream, limits: AvatarLimits, allow: Callable[[int], object]
) -> Iterator[tuple[Fraction, DecodedFrame]]:
    """Frames with their time in seconds since the first, in order of time."""
    rate = stream.average_rate or Fraction(25)
    start: Fraction | None = None
    last = Fraction(-1)
    pixels = 0
    for frame in container.decode(stream):
        check_pixels(frame.width, frame.height, "the video", limits)
        allow(frame.width * frame.height)
        pixels += frame.width * frame.height
        if pixels > limits.decoded_pixels:
            raise AvatarTooLarge(
                f"The video has more than {limits.decoded_pixels} pixels in all; make it shorter or smaller.",
                limit=limits.decoded_pixels,
            )
        if frame.pts is None or frame.time_base is None:
            time = max(last, Fraction(0)) + (1 / rate if start is not None else 0)
        else:
            stamp = frame.pts * frame.time_base
            time = stamp - (stamp if start is None else start)
            start = stamp if start is None else start
        start = Fraction(0) if start is None else start
        if time <= last:
            continue
        last = time
        if time > Fraction(limits.video_seconds):
            raise _too_long(float(time), limits)
        yield time, frame


def _resample(frames: Iterator[tuple[Fraction, DecodedFrame]], fps: int, limits: AvatarLimits) -> Iterator[Pixels]:
    shown = next(frames, None)
    if shown is None:
        raise AvatarEmpty("The video has no frame in it.")
    made, step, duration = 0, Fraction(1, fps), Fraction(1, fps)
    size = (shown[1].width, shown[1].height)
    for time, frame in frames:
        if (frame.width, frame.height) != size:
            raise AvatarUndecodable(
                f"The video changes its size from {size[0]}×{size[1]} to {frame.width}×{frame.height} on the way.",
                value=f"{frame.width}x{frame.height}",
            )
        pixels: Pixels | None = None
        while made * step < time:
            pixels = _upright(shown[1]) if pixels is None else pixels
            yield pixels
            made += 1
        duration = time - shown[0]
        shown = (time, frame)
    pixels = _upright(shown[1])
    while made * step < shown[0] + duration:
        yield pixels
        made += 1


def _upright(frame: DecodedFrame) -> Pixels:
    pixels = frame.to_ndarray(format="bgr24")
    turns = _QUARTER_TURNS.get(round(frame.rotation / 90) * 90 % 360, 0)
    return cast("Pixels", np.ascontiguousarray(np.rot90(pixels, turns)))
