"""A source film as frames of 25 a second, and the files of one clip of it: an MP4 with its sound, and a WAV."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from musetalk_agent.measure.lip_measures import VideoUnreadable, video_frames
from musetalk_agent.media_types import FEATURE_RATE, Pcm, Pixels

FPS = 25
_X264 = {"preset": "veryfast", "crf": "15"}
"""The quality of MuseTalk's own preprocess.py."""
_LACKING_S, _LACKING_SHARE = 0.3, 0.05
"""A film is cut short when it ends this much before the end that its header states, as in `avatars.video_decoder`."""


def frames_at_25(path: Path) -> Iterator[Pixels]:
    """For time k/25 from the first frame on the newest frame at or before it, uint8 BGR of one size.

    Raises:
        VideoUnreadable: no film, damaged, cut short, or of several sizes.
    """
    first = last = 0.0
    shown: Pixels | None = None
    made = 0
    for time, picture in video_frames(path):
        if shown is None:
            first = time
        elif picture.shape != shown.shape:
            raise VideoUnreadable(f"{path} changes its size after {time - first:.1f} s.")
        while shown is not None and first + made / FPS < time - 1e-6:
            yield shown
            made += 1
        shown, last = picture, time
    if shown is None:
        raise VideoUnreadable(f"{path} has no pictures.")
    yield shown
    promised = stated_seconds(path)
    if promised - (last - first) > max(_LACKING_S, promised * _LACKING_SHARE):
        raise VideoUnreadable(f"{path} breaks off after {last - first:.1f} s of {promised:.1f} s.")


def begins_at(path: Path) -> float:
    """Time of the first frame on the film's own time line, in seconds. Raises `VideoUnreadable`."""
    for time, _ in video_frames(path):
        return time
    raise VideoUnreadable(f"{path} has no pictures.")


def stated_seconds(path: Path) -> float:
    """How long the film's header says that its pictures last; 0 where it does not. Raises `VideoUnreadable`."""
    try:
        with path.open("rb") as file, av.open(file) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or not stream.duration:
                return 0.0
            return float(stream.duration * (stream.time_base or Fraction(0)))
    except (av.error.FFmpegError, av.error.EOFError, ValueError) as error:
        raise VideoUnreadable(f"{path} is no film that can be read, or it is damaged.") from error
    except OSError as error:
        raise VideoUnreadable(f"{path} cannot be read: {error.strerror}.") from error


class ClipWriter:
    """Writes an MP4 under another name, and moves it to `target` in `finish`. A context manager: what was not finished is deleted.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, target: Path, shape: tuple[int, ...], voice: Pcm) -> None:
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._voice = voice
        self._height, self._width = shape[0] // 2 * 2, shape[1] // 2 * 2
        self._container = av.open(str(self._part), "w", format="mp4")
        self._video: VideoStream = self._container.add_stream("libx264", rate=FPS, options=_X264)
        self._video.width, self._video.height, self._video.pix_fmt = self._width, self._height, "yuv420p"
        self._audio: AudioStream = self._container.add_stream("aac", rate=FEATURE_RATE, layout="mono")
        self.frames = 0

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()
        self._part.unlink(missing_ok=True)

    def push(self, bgr: Pixels) -> None:
        """The next frame."""
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(bgr[: self._height, : self._width]), format="bgr24")
        frame.pts, frame.time_base = self.frames, Fraction(1, FPS)
        self._container.mux(self._video.encode(frame))
        self.frames += 1

    def finish(self) -> None:
        """Adds the sound, as long as the pictures, and writes the WAV beside the MP4."""
        self._container.mux(self._video.encode(None))
        samples = self.frames * FEATURE_RATE // FPS
        voice = np.pad(self._voice[:samples], (0, max(0, samples - len(self._voice))))
        sound = AudioFrame.from_ndarray(np.ascontiguousarray(voice[None], np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = FEATURE_RATE, 0
        self._container.mux(self._audio.encode(sound))
        self._container.mux(self._audio.encode(None))
        self._container.close()
        with wave.open(str(self._target.with_suffix(".wav")), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(FEATURE_RATE)
            file.writeframes(voice.astype("<i2").tobytes())
        self._part.replace(self._target)
