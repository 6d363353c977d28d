"""Parts of a film, each encoded for itself, and the film that they make together with its sound.

The parts of an MP4 or a WebM are joined packet by packet, without encoding again: each begins with a key frame, and all have the
same encoder, settings and size. A zip of frames is joined entry by entry.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, cast

import av
import cv2
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame as FilmFrame
from av.video.stream import VideoStream

from musetalk_agent.compose.layers import straight
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.renders import RenderFormat
from musetalk_agent.renders.sounds import Sound

X264 = {
    # with its macroblock tree it takes half of veryfast's time, at the same PSNR (48.4 and 51.1 dB) for a tenth more bytes
    "preset": "superfast",
    "crf": "18",
    # without B-frames the first frame has time 0 in every player, also in those that ignore edit lists
    "bf": "0",
    # fades are what it is for; without it a talking face has the same size and PSNR for a quarter less of the time
    "x264-params": "weightp=0:mbtree=1:rc-lookahead=10",
    "threads": "1",  # as many parts as there are workers are made beside each other
}
VP9 = {
    "crf": "20",
    "b": "0",
    "deadline": "good",
    "cpu-used": "5",
    # no frame that is not shown, so that packets are frames; with alpha there may be none anyway
    "auto-alt-ref": "0",
    "lag-in-frames": "0",
    "threads": "1",
}
_BITS_PER_CHANNEL = 96_000
_PNG_COMPRESSION = 1  # of 9: twice as fast as the default, and a tenth larger


@dataclass(frozen=True, slots=True)
class Colours:
    """What the numbers of a film's planes mean: matrix, range (1 limited, 2 full), primaries and transfer, by H.273's numbers."""

    matrix: int
    range: int
    primaries: int
    transfer: int


STUDIO_601 = Colours(5, 1, 2, 2)
"""BT.601 in limited range, as `VideoFrame` has it; primaries and transfer are not said."""


@dataclass(frozen=True)
class _FilmKind:
    """A container with its encoders. `audio_rate` is the one rate that it takes; None for the sound's own."""

    container: str
    video: str
    options: dict[str, str]
    audio: str
    audio_rate: int | None = None
    muxer: dict[str, str] = field(default_factory=dict)


_KINDS = {
    RenderFormat.MP4: _FilmKind("mp4", "libx264", X264, "aac", muxer={"movflags": "+faststart"}),
    RenderFormat.WEBM: _FilmKind("webm", "libvpx-vp9", VP9, "libopus", 48_000),
}


@dataclass(frozen=True)
class FilmClock:
    """When the frames of a film are shown: frame `k` from `ticks[k]` on, the last one until `end`, in units of `base` seconds."""

    base: Fraction
    ticks: Sequence[int]
    end: int

    @classmethod
    def steady(cls, fps: int, frames: int) -> FilmClock:
        """`fps` frames a second."""
        return cls(Fraction(1, fps), range(frames), frames)

    def until(self, frame: int) -> int:
        """When frame `frame` ends, in units of `base`."""
        return self.ticks[frame + 1] if frame + 1 < len(self.ticks) else self.end

    @property
    def seconds(self) -> Fraction:
        """Length of the film."""
        return self.end * self.base


class PartsDiffer(Exception):
    """Two parts cannot be joined: they were encoded differently, by workers of different versions."""


class PartWriter(Protocol):
    """A part in the making. A context manager; leaving it closes the file, whatever happened."""

    def __enter__(self) -> PartWriter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, frame: VideoFrame) -> None:
        """Adds the next frame; nothing once the part is closed. Runs in a thread. Raises OSError on a full disk."""
        ...


def part_writer(
    path: Path,
    made: RenderFormat,
    fps: int,
    first: int,
    colours: Colours = STUDIO_601,
    aspect: Fraction = Fraction(1),
    *,
    alpha: bool = False,
) -> PartWriter:
    """A writer for a part whose first frame is number `first` of the film. `aspect` is the width of a pixel by its height: an MP4
    says it, and frames of the other formats are made so much wider. `alpha` says that the film has alpha, which not every format
    can have.
    """
    if made is not RenderFormat.MP4 and aspect != 1:  # PNG has no such field, and PyAV cannot set that of WebM
        part = part_writer(path, made, fps, first, colours, alpha=alpha)
        return AlteredPart(part, lambda frame, _: _square(frame, aspect), first)
    if made is RenderFormat.PNG:
        return _PngPart(path, first, colours)
    return _VideoPart(path, _KINDS[made], fps, colours, aspect, alpha)


class AlteredPart:
    """A part whose frames are altered as they are written.

    Args:
        part: takes the altered frames.
        alter: given a frame and its number in the film, in the thread that writes.
        first: number of its first frame.
    """

    def __init__(self, part: PartWriter, alter: Callable[[VideoFrame, int], VideoFrame], first: int) -> None:
        self._part, self._alter, self._next = part, alter, first

    def __enter__(self) -> AlteredPart:
        self._part.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._part.__exit__(kind, error, trace)

    def write(self, frame: VideoFrame) -> None:
        """See `PartWriter.write`."""
        self._part.write(self._alter(frame, self._next))
        self._next += 1


def _square(frame: VideoFrame, aspect: Fraction) -> VideoFrame:
    """A frame without alpha whose pixels are `aspect` times as wide as high, with square ones."""
    height, half = frame.height, max(1, round(frame.width * aspect / 2))
    luma, *chroma = np.split(frame.i420, [frame.width * height, frame.width * height * 5 // 4])
    planes = [cv2.resize(luma.reshape(height, -1), (2 * half, height))]
    planes += [cv2.resize(plane.reshape(height // 2, -1), (half, height // 2)) for plane in chroma]
    i420 = np.asarray(np.concatenate([plane.ravel() for plane in planes]), np.uint8)
    return replace(frame, i420=i420, width=2 * half)


class _VideoPart:
    """The pictures alone, with times from 0."""

    def __init__(self, path: Path, kind: _FilmKind, fps: int, colours: Colours, aspect: Fraction, alpha: bool) -> None:
        self._lock = threading.Lock()  # a frame may still be on its way when the part is given up: FFmpeg would crash
        self._closed = False
        self._alpha = alpha
        self._container = av.open(str(path), "w", format=kind.container)
        self._stream = cast("VideoStream", self._container.add_stream(kind.video, rate=fps, options=kind.options))
        self._stream.pix_fmt = "yuva420p" if alpha else "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._base = Fraction(1, fps)
        self._colours = colours
        context.colorspace, context.color_range = colours.matrix, colours.range
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        if aspect != 1:
            context.sample_aspect_ratio = aspect
        self._written = 0

    def __enter__(self) -> _VideoPart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            try:
                if error is None:
                    self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()

    def write(self, frame: VideoFrame) -> None:
        with self._lock:
            if not self._closed:
                self._write(frame)

    def _write(self, frame: VideoFrame) -> None:
        if not self._written:
            self._stream.width, self._stream.height = frame.width, frame.height
        picture = _film_frame(frame, self._colours, alpha=self._alpha)
        picture.time_base, picture.pts, picture.duration = self._base, self._written, 1
        self._container.mux(self._stream.encode(picture))
        self._written += 1


def _film_frame(frame: VideoFrame, colours: Colours, *, alpha: bool = False) -> FilmFrame:
    if alpha:
        planes, share = straight(frame)
        picture = FilmFrame(frame.width, frame.height, "yuva420p")
        luma, quarter = frame.width * frame.height, frame.width * frame.height // 4
        parts = planes[:luma], planes[luma : luma + quarter], planes[luma + quarter :], share.reshape(-1)
        for plane, values in zip(picture.planes, parts, strict=True):
            lines = np.zeros((plane.height, plane.line_size), np.uint8)
            lines[:, : plane.width] = values.reshape(plane.height, plane.width)
            plane.update(lines.tobytes())
    else:
        picture = FilmFrame.from_ndarray(frame.i420.reshape(frame.height * 3 // 2, frame.width), format="yuv420p")
    picture.colorspace, picture.color_range = colours.matrix, colours.range
    picture.color_primaries, picture.color_trc = colours.primaries, colours.transfer
    return picture


class _PngPart:
    """A zip of pictures, named by their numbers in the film."""

    def __init__(self, path: Path, first: int, colours: Colours) -> None:
        self._colours = colours
        self._lock = threading.Lock()
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._next = first

    def __enter__(self) -> _PngPart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._zip.close()

    def write(self, frame: VideoFrame) -> None:
        if frame.alpha is not None:
            planes, share = straight(frame)
            colours = cv2.cvtColor(planes.reshape(frame.height * 3 // 2, frame.width), cv2.COLOR_YUV2BGR_I420)
            bgr = np.dstack([colours, share])
        elif self._colours == STUDIO_601:
            bgr = cv2.cvtColor(frame.i420.reshape(frame.height * 3 // 2, frame.width), cv2.COLOR_YUV2BGR_I420)
        else:
            bgr = _film_frame(frame, self._colours).to_ndarray(format="bgr24")
        _, coded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION])
        with self._lock:
            if self._zip.fp is not None:  # else the part was given up
                self._zip.writestr(f"{self._next:08d}.png", np.asarray(coded).tobytes())
                self._next += 1


def join(parts: Sequence[Path], sound: Sound, made: RenderFormat, clock: FilmClock, target: Path) -> None:
    """Makes the film at `target` of its parts, in order, and its sound. Memory does not grow with its length.

    Raises PartsDiffer; OSError on a full disk. What was begun at `target` is then the caller's to remove.
    """
    if made is RenderFormat.PNG:
        _join_zips(parts, sound, target)
    else:
        _join_films(parts, sound, clock, target, _KINDS[made])


def _join_zips(parts: Sequence[Path], sound: Sound, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as whole:
        for path in parts:
            with zipfile.ZipFile(path) as part:
                for name in part.namelist():
                    whole.writestr(name, part.read(name))
        whole.write(sound.path, "sound.wav")


def _join_films(parts: Sequence[Path], sound: Sound, clock: FilmClock, target: Path, kind: _FilmKind) -> None:
    with av.open(str(target), "w", format=kind.container, options=kind.muxer) as film:
        with av.open(str(parts[0])) as first:
            template = first.streams.video[0]
            header = template.codec_context.extradata
            video = film.add_stream_from_template(template)
            if (
                template.metadata.get("alpha_mode") == "1"
            ):  # else the muxer leaves the element out, and players the alpha
                video.metadata["alpha_mode"] = "1"
        video.time_base = clock.base
        voice = _SoundTrack(film, sound, kind)
        at = 0
        for path in parts:
            with av.open(str(path)) as source:
                if source.streams.video[0].codec_context.extradata != header:
                    raise PartsDiffer(f"{path.name} was encoded otherwise than {parts[0].name}: render it again.")
                for packet in source.demux(source.streams.video[0]):
                    if packet.size == 0:  # the flush at the end
                        continue
                    packet.stream, packet.time_base = video, clock.base
                    packet.pts = packet.dts = clock.ticks[at]
                    end = clock.until(at)
                    packet.duration = end - packet.pts
                    at += 1
                    film.mux(packet)
                    voice.speak(int(end * clock.base * sound.rate))
        voice.speak(None)
        voice.finish()


class _SoundTrack:
    """The sound's track, written beside the pictures: players want both close to each other in the file."""

    def __init__(self, film: OutputContainer, sound: Sound, kind: _FilmKind) -> None:
        layout = "mono" if sound.channels == 1 else "stereo"
        self._film, self._sound, self._layout = film, sound, layout
        rate = kind.audio_rate or sound.rate
        self._stream = cast("AudioStream", film.add_stream(kind.audio, rate=rate, layout=layout))
        self._stream.bit_rate = _BITS_PER_CHANNEL * sound.channels
        self._resampler = AudioResampler(format="s16", layout=layout, rate=rate)
        self._blocks = iter(sound.blocks())
        self._samples = 0

    def speak(self, until: int | None) -> None:
        """Adds sound up to this sample, or all of it."""
        while until is None or self._samples < until:
            block = next(self._blocks, None)
            if block is None:
                return
            packed = AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout=self._layout)
            packed.sample_rate, packed.time_base = self._sound.rate, Fraction(1, self._sound.rate)
            packed.pts = self._samples
            self._samples += len(block)
            self._encode(packed)

    def finish(self) -> None:
        """Ends the track."""
        self._encode(None)
        self._film.mux(self._stream.encode(None))

    def _encode(self, packed: AudioFrame | None) -> None:
        for frame in self._resampler.resample(packed):
            self._film.mux(self._stream.encode(frame))
