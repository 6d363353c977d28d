"""The frames of a clip's video track in order of time: whole ones only, deinterlaced.

A file that is cut or damaged gives the frames that are whole, and a warning. How much memory a frame takes, by its size and pixel
format, decides on the threads, and on what is refused.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import av.error
from av.codec.context import CodecContext, ThreadType
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame as DecodedFrame
from av.video.stream import VideoStream

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import MediaKind, check_pixels
from musetalk_agent.errors import AvatarEmpty, AvatarError, AvatarTooLarge, AvatarUndecodable

CODECS = frozenset(
    "h264 hevc av1 libdav1d libaom-av1 vp8 vp9 libvpx libvpx-vp9 mpeg1video mpeg2video mpeg4 msmpeg4v2 msmpeg4 mjpeg prores "
    "dvvideo theora qtrle png rawvideo".split()
)
"""Decoders that avatars come in; everything else that FFmpeg knows only widens what a hostile clip can reach."""
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the alpha of WebM, which FFmpeg's own leave out."""
_DOLBY_ONLY = frozenset({"dvh1", "dvhe", "dva1", "dvav", "dav1"})
"""Sample entries of Dolby Vision that is nothing else as well (ETSI TS 103 572): without its metadata it is green and violet."""
_SLICES_PIXELS = 1920 * 1088
"""Up to here no two frames are decoded at once, so that a decoder's error belongs to the packet that it is raised for. H.264 has
one thread then: with threads that share a frame FFmpeg does not mark those in which it conceals errors (libavcodec/h264dec.c)."""
_CUT_S, _CUT_SHARE = 0.3, 0.05
"""A clip counts as cut when it ends this much before the end that its header states: muxers round by a frame or two."""


@dataclass(frozen=True, slots=True)
class ClipFrame:
    """A frame, its time in seconds since the first one, and how long it is shown."""

    time: Fraction
    duration: Fraction
    frame: DecodedFrame


@contextmanager
def decoding_errors() -> Iterator[None]:
    """Turns what PyAV raises for a damaged file into errors of avatars, and what it raises without memory into MemoryError."""
    try:
        yield
    except av.error.PatchWelcomeError as error:
        raise AvatarUndecodable(
            "The video uses a feature of its codec that is not read here; export it as H.264 (MP4)."
        ) from error
    except (av.error.FFmpegError, av.error.EOFError, ValueError, IndexError) as error:
        if _no_memory(error):
            raise MemoryError from error
        raise AvatarUndecodable(
            "The video cannot be decoded: it is damaged or cut short. Send it again, or export it as H.264 (MP4)."
        ) from error


def _no_memory(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOMEM


class VideoTrackDecoder:
    """The video track of an open container.

    `stream` is the track, `aspect` the width of a pixel by its height. With `by_libvpx`, frames have alpha, but nothing that the
    container states beside their pixels.

    Raises:
        AvatarEmpty: no video track.
        AvatarUndecodable: a codec that is not accepted.
        AvatarTooLarge: too many pixels or seconds.
    """

    def __init__(
        self, container: InputContainer, kind: MediaKind, limits: AvatarLimits, allow: Callable[[int], object]
    ) -> None:
        self._container, self._limits, self._allow = container, limits, allow
        self.stream = _track(container)
        self._context = self._decoder()
        self.aspect = self.stream.sample_aspect_ratio or Fraction(1)
        self._time_base = self.stream.time_base or Fraction(1, 1000)
        self._dts_in_order: deque[int] | None = deque() if kind is MediaKind.AVI else None
        self._rate = self.stream.average_rate or Fraction(25)
        self._stated_duration = self._length()
        if self._stated_duration is not None and self._stated_duration > limits.video_seconds:
            raise _too_long(float(self._stated_duration), limits)
        self._end = Fraction(0)
        self._cut_short = self._key_frame = False
        self._damaged_span: tuple[Fraction, Fraction] | None = None
        self._whole_frames = self._damaged_frames = 0
        self._lost: list[Fraction] = []
        frames_at_once = self._context.thread_count if self._context.thread_type & ThreadType.FRAME else 0
        self._recent_pts: deque[int] = deque(maxlen=frames_at_once + 1)

    @property
    def expected_frames(self) -> int:
        """How many frames the header promises; 0 where it does not say."""
        return self.stream.frames or round((self._stated_duration or 0) * self._rate)

    def frames(self) -> Iterator[ClipFrame]:
        """Whole frames, none of which is kept while the next is decoded. Raises AvatarTooLarge, and what PyAV does."""
        yield from self._progressive(self._timed(self._undamaged(self._decoded())))

    def stamped_frames(self, start: Fraction | None = None) -> Iterator[ClipFrame]:
        """Like `frames`, but each at the time that the file gives it, whatever is missing before it, without a limit on seconds.

        With `start`, in seconds of the file, it begins at a key frame that the container names before it: in some files later. A
        file whose frames have no times of their own cannot be entered so.
        """
        if start is not None:
            self._container.seek(int(start / self._time_base), stream=self.stream)
        yield from self._progressive(self._in_order(self._undamaged(self._decoded())))

    def _in_order(self, frames: Iterator[tuple[Fraction, DecodedFrame]]) -> Iterator[ClipFrame]:
        last: Fraction | None = None
        for stamp, frame in frames:
            if last is not None and stamp <= last:
                continue
            check_pixels(frame.width, frame.height, "the video", self._limits)
            last = stamp
            self._whole_frames += 1
            yield ClipFrame(stamp, Fraction(frame.duration) * self._time_base, frame)
            del frame

    @staticmethod
    def _progressive(frames: Iterator[ClipFrame]) -> Iterator[ClipFrame]:
        deinterlacer: _Deinterlacer | None = None
        for timed in frames:
            if deinterlacer is None and timed.frame.interlaced_frame:
                deinterlacer = _Deinterlacer()
            if deinterlacer is None:
                yield timed
            else:
                yield from deinterlacer.push(timed)
            del timed
        if deinterlacer is not None:
            yield from deinterlacer.flush()

    def warnings(self) -> list[tuple[str, str]]:
        """Warnings about the file: codes and sentences."""
        found = []
        promised = self._stated_duration or Fraction(0)
        lacking = promised - self._end > max(Fraction(_CUT_S), promised * Fraction(_CUT_SHARE))
        short = lacking and (self._cut_short or not self._damaged_frames)
        if self._cut_short or short:
            of = f" of the {float(promised):.1f} s that its header promises" if short else ""
            found.append(
                ("video_cut_short", f"The video breaks off after {float(self._end):.1f} s{of}; send it again, whole.")
            )
        if self._damaged_frames:
            found.append(
                (
                    "video_damaged",
                    f"{self._damaged_frames} of {self._damaged_frames + self._whole_frames} frames of the video are damaged and "
                    "were left out; export it again.",
                )
            )
        return found

    def no_frame_error(self) -> AvatarError:
        """The error for a video that gave no frame."""
        if self._cut_short or (self._stated_duration and not self._damaged_frames):
            return AvatarUndecodable("The video breaks off before its first frame is whole; send it again, whole.")
        if self._damaged_frames:
            return AvatarUndecodable(
                f"None of the {self._damaged_frames} frames of the video can be decoded; export it again, as H.264 (MP4).",
                value=self._damaged_frames,
            )
        return AvatarEmpty("The video has no frame in it.")

    def _decoder(self) -> VideoCodecContext:
        stream, context = self.stream, self.stream.codec_context
        name = "unknown" if context is None else context.codec.name
        if name not in CODECS:
            raise AvatarUndecodable(
                f"The video's codec is {name}, which is not read here; export it as H.264 (MP4), or VP9 with alpha (WebM).",
                value=name,
            )
        if context.codec_tag in _DOLBY_ONLY:
            raise AvatarUndecodable(
                f"The video is in a form of Dolby Vision ({context.codec_tag}) whose colours are not read here; export it "
                "as HDR10, HLG or SDR.",
                value=context.codec_tag,
            )
        check_pixels(context.width, context.height, "the video", self._limits)
        stated = {key.lower(): value for key, value in stream.metadata.items()}  # a tag of its name hides the element
        self.by_libvpx = stated.get("alpha_mode") == "1" and name in _WITH_ALPHA
        check_frame_bytes(context, self.by_libvpx, self._limits)
        self._allow(context.width * context.height)
        if self.by_libvpx:
            extradata, context = (
                context.extradata,
                cast("VideoCodecContext", CodecContext.create(_WITH_ALPHA[name], "r")),
            )
            context.extradata = extradata
        context.options = {"max_pixels": str(self._limits.picture_pixels)}
        if name == "libdav1d":  # its threads share a frame; by default each has its own, and is no faster for it
            context.options |= {"max_frame_delay": "1"}
        large = context.width * context.height > _SLICES_PIXELS
        context.thread_type = ThreadType.AUTO if large else ThreadType.SLICE
        alone = name == "h264" and not large
        context.thread_count = 1 if alone else threads(context)
        return context

    def _length(self) -> Fraction | None:
        """Seconds that the header promises of the track, or of the file where it does not say."""
        if self.stream.duration:
            return self.stream.duration * self._time_base
        return Fraction(self._container.duration, av.time_base) if self._container.duration else None

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        cut_in_packet = False
        try:
            for packet in self._container.demux(self.stream):
                cut_in_packet = packet.is_corrupt if packet.size else cut_in_packet
                yield packet
        except av.error.FFmpegError as error:
            if _no_memory(error):
                raise
            self._cut_short = True
        if cut_in_packet:  # the file ends within the last packet, which is no damage of its own
            self._cut_short = True
            self._damaged_frames -= 1

    def _decoded(self) -> Iterator[tuple[Fraction | None, DecodedFrame]]:
        """Frames as they are decoded, with their stamp in seconds; what fails is counted and noted as bad."""
        for packet in self._packets():
            if packet.size and self._dts_in_order is not None and packet.dts is not None:
                self._dts_in_order.append(packet.dts)
            if packet.pts is not None:
                self._recent_pts.append(packet.pts)
            if packet.is_corrupt:  # its end is missing
                self._note_damage()
                continue
            yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: Packet[VideoStream] | None) -> Iterator[tuple[Fraction | None, DecodedFrame]]:
        try:
            frames = self._context.decode(packet)
        except av.error.PatchWelcomeError:
            raise
        except av.error.EOFError:
            return  # it was flushed already
        except av.error.FFmpegError as error:
            if _no_memory(error):
                raise
            self._note_damage()
            return
        self._key_frame = packet is not None and packet.is_keyframe
        while frames:
            stamp = frames[0].pts
            if self._dts_in_order:
                stamp = self._dts_in_order.popleft()
            yield (None if stamp is None else stamp * self._time_base), frames.pop(0)

    def _note_damage(self) -> None:
        """Counts a packet that gave no frame: one of the last that were sent, where threads decode several at once."""
        first, last = min(self._recent_pts, default=0), max(self._recent_pts, default=0)
        self._lose(first * self._time_base, last * self._time_base)

    def _lose(self, first: Fraction, last: Fraction) -> None:
        """Counts a lost frame, whose time is between `first` and `last`. Frames after it are damaged, too, until a key frame."""
        self._damaged_frames += 1
        self._lost.append(first)
        self._damaged_span = (
            (first, last)
            if self._damaged_span is None
            else (min(self._damaged_span[0], first), max(self._damaged_span[1], last))
        )

    def _undamaged(
        self, frames: Iterator[tuple[Fraction | None, DecodedFrame]]
    ) -> Iterator[tuple[Fraction, DecodedFrame]]:
        """Frames without damage. After a damaged one they begin again with a key frame."""
        stamp = Fraction(0)
        for given, frame in frames:
            stamp = stamp + 1 / self._rate if given is None else given
            # libvpx gives each packet's frame at once, and does not mark it
            key = self._key_frame if self.by_libvpx else frame.key_frame
            if self._damaged_span is not None and key and stamp > self._damaged_span[1]:
                self._damaged_span = None
            if frame.is_corrupt:
                self._lose(stamp, stamp)
            elif self._damaged_span is not None and stamp >= self._damaged_span[0]:
                self._damaged_frames += 1
                self._lost.append(stamp)
            else:
                yield stamp, frame
            del frame

    def _timed(self, frames: Iterator[tuple[Fraction, DecodedFrame]]) -> Iterator[ClipFrame]:
        """Frames with their times from 0 on. Those behind frames that were left out move up."""
        limits, shift, pixels = self._limits, None, 0
        last, usual = Fraction(-1), 1 / self._rate
        for stamp, frame in frames:
            check_pixels(frame.width, frame.height, "the video", limits)
            self._allow(frame.width * frame.height)
            pixels += frame.width * frame.height
            if pixels > limits.video_pixels:
                raise AvatarTooLarge(
                    f"The video has more than {limits.video_pixels} pixels in all; make it shorter or smaller.",
                    limit=limits.video_pixels,
                )
            shift = -stamp if shift is None else shift
            time = stamp + shift
            missing = [lost for lost in self._lost if lost <= stamp]
            self._lost = [lost for lost in self._lost if lost > stamp]
            if missing and self._whole_frames and time > last + usual:
                shift, time = shift + last + usual - time, last + usual
            if time <= last:
                continue
            if self._whole_frames:
                usual = time - last
            last = time
            if time > limits.video_seconds:
                raise _too_long(float(time), limits)
            duration = Fraction(frame.duration) * self._time_base if frame.duration > 0 else usual
            duration = min(
                duration, Fraction(limits.video_seconds) - time
            )  # a wrong duration of the last frame adds no minutes
            self._whole_frames += 1
            self._end = time + duration
            yield ClipFrame(time, duration, frame)
            del frame


class _Deinterlacer:
    """FFmpeg's `bwdif` at the rate of the frames; frames that are progressive pass as they are."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._shape: tuple[object, ...] = ()
        self._waiting: deque[ClipFrame] = deque()
        self._count = 0

    def push(self, timed: ClipFrame) -> Iterator[ClipFrame]:
        """Takes a frame, and gives those that are ready."""
        frame = timed.frame
        shape = (frame.width, frame.height, frame.format.name)
        if shape != self._shape:
            yield from self.flush()
            self._graph, self._shape = Graph(), shape
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            deinterlacer = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
            sink = self._graph.add("buffersink")
            self._graph.link_nodes(source, deinterlacer, sink).configure()
        assert self._graph is not None
        frame.pts, frame.time_base = self._count, Fraction(1, 1000)
        self._count += 1
        self._waiting.append(timed)
        self._graph.vpush(frame)
        yield from self._ready()

    def flush(self) -> Iterator[ClipFrame]:
        """Gives what is left."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._ready()
            self._graph, self._shape = None, ()
            self._waiting.clear()

    def _ready(self) -> Iterator[ClipFrame]:
        assert self._graph is not None
        while True:
            try:
                frame = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            timed = self._waiting.popleft()
            yield ClipFrame(timed.time, timed.duration, frame)


def _track(container: InputContainer) -> VideoStream:
    """The video track: the first that is not the cover of an album."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise AvatarEmpty("The video has no picture track.")


def _too_long(seconds: float, limits: AvatarLimits) -> AvatarTooLarge:
    return AvatarTooLarge(
        f"The video lasts {seconds:.1f} s; at most {limits.video_seconds:g} s are allowed.",
        limit=limits.video_seconds,
        value=round(seconds, 1),
    )


_THREADS_MAX = 4
_THREADS_BYTES = 50_000_000
"""Bytes that all threads may hold together, a frame each. More than four threads do not help a clip of a minute."""
_PLAIN_BYTES = Fraction(3, 2)
"""Of a pixel in 4:2:0 of 8 bits. Most decoders keep six to nine frames of any kind: with more a pixel, there may be fewer."""
_LAST_FRAME_ONLY = frozenset({"png", "qtrle"})
"""Decoders that keep one frame at most, though not every frame stands alone."""


def threads(context: VideoCodecContext) -> int:
    """How many threads decode a video whose size and pixel format are known."""
    return max(1, min(_THREADS_MAX, os.cpu_count() or 1, _THREADS_BYTES // max(1, _frame_bytes(context))))


def check_frame_bytes(context: VideoCodecContext, two_decoders: bool, limits: AvatarLimits) -> None:
    """Refuses a large video whose frames take more memory than those of 8 bits in 4:2:0.

    Args:
        context: whose size and pixel format are known.
        two_decoders: whether alpha is a second video, as large as the first.
        limits: `rich_pixels` is the limit.

    Raises:
        AvatarTooLarge: too many pixels for its kind.
    """
    alone = context.codec.intra_only or context.codec.name in _LAST_FRAME_ONLY
    pixels = context.width * context.height
    frame_bytes = _frame_bytes(context) * (2 if two_decoders else 1)
    odd = context.width + context.height + 1  # a side of chroma is rounded up
    if alone or pixels <= limits.rich_pixels or frame_bytes <= pixels * _PLAIN_BYTES + odd:
        return
    form = "with alpha" if two_decoders else f"in {context.pix_fmt}"
    raise AvatarTooLarge(
        f"The video is {context.width}×{context.height} {form}, which takes more memory than is given to one; at most "
        f"{limits.rich_pixels} pixels a frame are allowed of this kind. Scale it down, or export it with 8 bits in 4:2:0 "
        "without alpha (the usual H.264).",
        limit=limits.rich_pixels,
        value=pixels,
    )


def _frame_bytes(context: VideoCodecContext) -> int:
    """Bytes of a decoded frame; 0 where its pixel format is not known."""
    parts = context.format.components if context.format else ()
    return sum(part.width * part.height * -(-part.bits // 8) for part in parts)
