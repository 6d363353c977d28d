"""A publisher into an MP4 file: every frame at its media time, beside the audio as it was recorded.

The time of a frame is the place of the voice when it is shown, in whole frames, and not what any clock says. So the file is
in step to the frame, whatever the pace at which it was made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame as FilmFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from musetalk_agent.clock import Clock
from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.publishers.base import Lost, NullPublisher

_X264 = {
    "preset": "veryfast",
    "crf": "18",
    # without B-frames the first frame has time 0 in every player, also in those that ignore edit lists
    "bf": "0",
    # fades are what it is for; without it a talking face has the same size and PSNR for a quarter less of the time
    "x264-params": "weightp=0",
}
_AAC_BITS_PER_CHANNEL = 96_000


@dataclass(frozen=True)
class FilmAudio:
    """The audio of a film.

    Args:
        blocks: int16 `[n, channels]`, any n, read as the film goes on.
        rate: samples per second.
        channels: 1 or 2.
    """

    blocks: Iterable[Pcm]
    rate: int
    channels: int


class Film:
    """An MP4 in the making: H.264 and AAC, written under another name and moved to `target` by `finish`.

    A context manager: what was not finished when it ends is deleted.

    Args:
        target: the file to make; one that is there is replaced at the very end.
        fps: frames per second.
        frames: how many frames it will have.
    """

    def __init__(self, target: Path, fps: int, frames: int, sound: FilmAudio) -> None:
        self.target, self.fps, self.frames = target, fps, frames
        self.written = 0
        self.repeated = 0
        self._part = target.with_name(f".{target.name}.{os.getpid()}.part")
        self._sound = sound
        self._blocks: Iterator[Pcm] = iter(sound.blocks)
        self._samples = 0
        self._last: VideoFrame | None = None
        self._container: OutputContainer | None = None
        self._video: VideoStream
        self._audio: AudioStream

    def __enter__(self) -> Film:
        """Raises OSError where no file can be written."""
        self._part.touch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        container, self._container = self._container, None
        try:
            if container is not None:
                container.close()
        except OSError:
            if error is None:  # else the full disk has been reported already
                raise
        finally:
            self._part.unlink(missing_ok=True)

    def open(self, width: int, height: int) -> None:
        """Begins the file with frames of this size (both even)."""
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        self._video = self._container.add_stream("libx264", rate=self.fps, options=_X264)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context = self._video.codec_context
        context.time_base = Fraction(1, self.fps)
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        layout = "mono" if self._sound.channels == 1 else "stereo"
        self._audio = self._container.add_stream("aac", rate=self._sound.rate, layout=layout)
        self._audio.bit_rate = _AAC_BITS_PER_CHANNEL * self._sound.channels

    def picture(self, index: int, frame: VideoFrame) -> None:
        """Shows `frame` from frame `index` on; before the last one written or past the end it is ignored.

        Frames that are missing before it are those before them, once more.
        """
        if not self.written <= index < self.frames:
            return
        self._hold(index, frame)
        self._write(frame)
        self._last = frame

    def finish(self) -> None:
        """Writes what is missing and moves the file into place. Raises OSError; ValueError when no frame ever came."""
        if self._container is None or self._last is None:
            raise ValueError("a film without a picture cannot be finished")
        self._hold(self.frames, self._last)
        self._container.mux(self._video.encode(None))
        self._speak(None)
        self._container.mux(self._audio.encode(None))
        self._container.close()
        self._container = None
        self._part.replace(self.target)

    def _hold(self, index: int, otherwise: VideoFrame) -> None:
        while self.written < index:
            self.repeated += 1
            self._write(self._last or otherwise)

    def _write(self, frame: VideoFrame) -> None:
        assert self._container is not None
        planes = frame.i420.reshape(frame.height * 3 // 2, frame.width)
        picture = FilmFrame.from_ndarray(planes, format="yuv420p")
        picture.time_base, picture.pts, picture.duration = Fraction(1, self.fps), self.written, 1
        picture.colorspace, picture.color_range = Colorspace.ITU601, ColorRange.MPEG
        self._container.mux(self._video.encode(picture))
        self.written += 1
        self._speak(self.written * self._sound.rate // self.fps)

    def _speak(self, until: int | None) -> None:
        """Adds audio up to sample `until`, or all of it: players want both tracks side by side in the file."""
        assert self._container is not None
        while until is None or self._samples < until:
            block = next(self._blocks, None)
            if block is None:
                return
            packed = AudioFrame.from_ndarray(
                block.reshape(1, -1), format="s16", layout="mono" if self._sound.channels == 1 else "stereo"
            )
            packed.sample_rate, packed.time_base = self._sound.rate, Fraction(1, self._sound.rate)
            packed.pts = self._samples
            self._samples += len(block)
            self._container.mux(self._audio.encode(packed))


class FilePublisher(NullPublisher):
    """Plays into a film at the pace of its clock; a virtual one makes that as quick as the machine is.

    What is shown before the first audio and after the last is not part of the film. Finishing the film is its owner's business.
    """

    name = "file"

    def __init__(self, film: Film, clock: Clock) -> None:
        super().__init__(clock, watch=self._see)
        self._film = film

    async def open(self, first: VideoFrame, lost: Lost) -> None:
        """Begins the film with the size of `first`."""
        self._film.open(first.width, first.height)
        await super().open(first, lost)

    def _see(self, at: float, frame: VideoFrame) -> None:
        if self.playout.enqueued:
            self._film.picture(round(self.playout.position() * self._film.fps / ROOM_RATE), frame)
