"""Encodes and muxes one push (H.264 with AAC or Opus), and the bounded queue in front of it.

The event loop fills `MediaQueue`, a thread empties it. The time line begins with the first audio or frame.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.frame import VideoFrame as StreamFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import Pcm, VideoFrame

AUDIO_S = 3.0
"""Audio that may wait, over a reconnect; of more the oldest is given up."""
VIDEO_S = 0.5
"""A frame older than this is never pushed."""


@dataclass(frozen=True, slots=True)
class QueuedAudio:
    """int16 mono samples at `ROOM_RATE`; the first is heard at `at` (monotonic seconds)."""

    at: float
    block: Pcm


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """A frame that is seen at `at`. `key`: frames before it were dropped, it has to be a key frame."""

    at: float
    frame: VideoFrame
    key: bool = False


class MediaQueue:
    """Media in the order of their times. `offer_*` and `take` never wait; `wait` does. All are safe from any thread.

    Of audio `audio_s` seconds may wait. `taken_until`: when the audio that was taken last ends (monotonic seconds).
    """

    def __init__(self, audio_s: float = AUDIO_S) -> None:
        self._audio_s = audio_s
        self._changed = threading.Condition()
        self._audio: deque[QueuedAudio] = deque()
        self._frames: deque[QueuedFrame] = deque()
        self._gap = False
        self._stopped = False
        self._cut: float | None = None
        self.taken_until = -math.inf
        self.dropped_frames = 0
        self.dropped_audio = 0

    def offer_audio(self, sound: QueuedAudio) -> None:
        """Adds audio; what is more than `audio_s` older than its end is given up."""
        with self._changed:
            self._audio.append(sound)
            limit = sound.at + len(sound.block) / ROOM_RATE - self._audio_s
            while self._audio[0].at < limit:
                self._audio.popleft()
                self.dropped_audio += 1
            self._changed.notify()

    def offer_video(self, picture: QueuedFrame) -> None:
        """Adds a frame; when that makes more than `VIDEO_S` wait, all before it are dropped."""
        with self._changed:
            if self._frames and picture.at - self._frames[0].at > VIDEO_S:
                self._drop(len(self._frames))
            self._frames.append(picture)
            self._changed.notify()

    def take(self, now: float, until: float = math.inf) -> QueuedAudio | QueuedFrame | None:
        """The next in time, audio first; None when nothing waits up to `until`. Frames too old by `now` are dropped before."""
        with self._changed:
            while self._frames and now - self._frames[0].at > VIDEO_S:
                self._drop(1)
            if self._audio and not (self._frames and self._frames[0].at < self._audio[0].at):
                return self._take_audio() if self._audio[0].at <= until else None
            if not self._frames or self._frames[0].at > until:
                return None
            picture = self._frames.popleft()
            if self._gap:
                self._gap = False
                return QueuedFrame(picture.at, picture.frame, key=True)
            return picture

    def clear_audio(self, since: float = -math.inf) -> None:
        """Drops the audio that would be heard at `since` (monotonic seconds) or later; `take_cut` returns it to the reader once."""
        with self._changed:
            while self._audio and self._audio[-1].at >= since:
                self._audio.pop()
            self._cut = since if self._cut is None else min(self._cut, since)

    def take_cut(self) -> float | None:
        """The `since` of the clears after the last call, or None. Audio taken before it from then on must not be given back."""
        with self._changed:
            cut, self._cut = self._cut, None
            return cut

    def requeue(self, sound: QueuedAudio) -> None:
        """Puts audio that could not be pushed to the front again."""
        with self._changed:
            self._audio.appendleft(sound)
            self.taken_until = min(self.taken_until, sound.at)

    def wait(self, timeout_s: float) -> None:
        """Until something waits, or the queue is stopped, or the time is over."""
        with self._changed:
            if not (self._audio or self._frames or self._stopped):
                self._changed.wait(timeout_s)

    def rest(self, timeout_s: float) -> None:
        """Until the queue is stopped or the time is over, whatever waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, timeout_s)

    def stop(self) -> None:
        """Ends all waiting, now and later."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        """`stop` was called."""
        return self._stopped

    def seconds(self) -> float:
        """From the oldest that waits to the newest."""
        with self._changed:
            heads = [queue[0].at for queue in (self._audio, self._frames) if queue]
            tails = [self._audio[-1].at + len(self._audio[-1].block) / ROOM_RATE] if self._audio else []
            tails += [self._frames[-1].at] if self._frames else []
            return max(tails) - min(heads) if heads else 0.0

    def _take_audio(self) -> QueuedAudio:
        sound = self._audio.popleft()
        self.taken_until = sound.at + len(sound.block) / ROOM_RATE
        return sound

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._frames.popleft()
        self.dropped_frames += count
        self._gap = True


_TICK = Fraction(1, 90_000)
_JITTER_TOLERANCE = ROOM_RATE * 15 // 1000
"""Samples by which the clock may be off before audio is moved that follows on audio: a seam in a word is worse than 15 ms."""
_LATE = ROOM_RATE // 10
"""Samples by which audio may come late and still be heard whole. Frames are then as much later, so that both stay in step."""
_SILENCE = ROOM_RATE // 50
_QUIET = 58
"""Peak of a block that counts as silence: -55 dBFS."""
_GIVEN_BACK = ROOM_RATE // 100
"""Samples of delay that one block of silence, or one frame without audio, gives back at most. Less than a frame lasts (at
50 frames a second), so that time stamps go on rising."""


@dataclass(frozen=True, slots=True)
class Codecs:
    """How to encode: of H.264 its profile and preset, of audio the codec, its channels (all the same) and its bits per second.

    `keyframe_s` seconds after a key frame there is another.
    """

    video: Mapping[str, str]
    audio: str
    channels: int
    audio_bitrate: int
    audio_options: Mapping[str, str]
    keyframe_s: float


@dataclass(frozen=True, slots=True)
class StreamShape:
    """Size (even) and greatest rate of the frames, and what they may take in bit/s."""

    width: int
    height: int
    fps: int
    bitrate: int


class StreamEncoder:
    """Writes what it is given, in order of time, into `container`. One thread only. Its methods raise what the container does."""

    def __init__(self, container: OutputContainer, shape: StreamShape, codecs: Codecs) -> None:
        self._container, self._shape = container, shape
        # x264 takes another bitrate while it runs only where a buffer was limited from the start
        limits = {"maxrate": str(shape.bitrate), "bufsize": str(shape.bitrate)}
        self._video: VideoStream = container.add_stream("libx264", rate=shape.fps, options={**codecs.video, **limits})
        self._video.width, self._video.height, self._video.pix_fmt = shape.width, shape.height, "yuv420p"
        self._video.bit_rate = shape.bitrate
        context = self._video.codec_context
        context.time_base = _TICK
        context.thread_count = 1
        context.gop_size = 100 * shape.fps  # key frames are asked for by time, as the rate may go down
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        self._channels = codecs.channels
        self._layout = "mono" if codecs.channels == 1 else "stereo"
        options = dict(codecs.audio_options)
        audio = container.add_stream(codecs.audio, rate=ROOM_RATE, layout=self._layout, options=options)
        assert isinstance(audio, AudioStream)
        self._audio = audio
        self._audio.bit_rate = codecs.audio_bitrate
        self._start: float | None = None
        self._samples = 0
        self._delay = 0  # samples by which both tracks are behind their times, since audio came late
        self._silent = True
        self._keyframe_s = codecs.keyframe_s - 0.5 / shape.fps
        self._last_key = -codecs.keyframe_s
        self._last_tick = -1
        self.frames = 0

    def open(self) -> None:
        """Writes the header, which connects those formats that connect by themselves."""
        self._container.start_encoding()

    def set_bitrate(self, bitrate: int) -> None:
        """Takes effect with the next frame; the encoder goes on."""
        self._video.bit_rate = bitrate

    def play(self, sound: QueuedAudio) -> None:
        """Adds audio at its time. Where none was before it there is silence; what comes too late to be heard is left out.

        Audio that is a little late is heard whole and delays both tracks; silence gives the delay back.
        """
        block = sound.block
        place = self._sample(sound.at)
        if np.abs(block.astype(np.int32)).max(initial=0) <= _QUIET:
            block = block[self._return_early(len(block)) :]
        late = self._samples - place
        if late > _LATE:
            block = block[late:]
        elif late > (0 if self._silent else _JITTER_TOLERANCE):
            self._delay += late
        elif -late > (0 if self._silent else _JITTER_TOLERANCE):
            self._pad_silence(self._samples - late)
        self._encode_audio(block)
        self._silent = False

    def show(self, picture: QueuedFrame) -> None:
        """Adds a frame at its time, and silence up to it where no audio was offered: audio is always offered before."""
        if self._silent:
            self._return_early(_GIVEN_BACK)
        place = self._sample(picture.at)
        self._pad_silence(place)
        seconds = max(0.0, place / ROOM_RATE)
        frame = self._frame(picture.frame)
        frame.time_base, frame.pts = _TICK, max(self._last_tick + 1, round(seconds / _TICK))
        if picture.key or seconds - self._last_key >= self._keyframe_s:
            frame.pict_type = PictureType.I
            self._last_key = seconds
        self._last_tick = frame.pts
        self._container.mux(self._video.encode(frame))
        self.frames += 1

    @property
    def audio_s(self) -> float:
        """Seconds of audio so far, silence included."""
        return self._samples / ROOM_RATE

    def finish(self) -> None:
        """Writes what the encoders still hold, and the trailer."""
        self._container.mux(self._video.encode(None))
        self._container.mux(self._audio.encode(None))

    def _sample(self, at: float) -> int:
        """Place of a moment among the samples; the first moment asked for is place 0."""
        if self._start is None:
            self._start = at
        return round((at - self._start) * ROOM_RATE) + self._delay

    def _return_early(self, most: int) -> int:
        """Reduces the delay by up to `most` samples; returns by how many."""
        given = min(most, self._delay, _GIVEN_BACK)
        self._delay -= given
        return given

    def _pad_silence(self, until: int) -> None:
        self._silent = self._silent or self._samples < until
        while self._samples < until:
            self._encode_audio(np.zeros(min(_SILENCE, until - self._samples), np.int16))

    def _encode_audio(self, block: Pcm) -> None:
        if not len(block):
            return
        interleaved = np.repeat(block, self._channels).reshape(1, -1)
        packed = AudioFrame.from_ndarray(interleaved, format="s16", layout=self._layout)
        packed.sample_rate, packed.time_base, packed.pts = ROOM_RATE, Fraction(1, ROOM_RATE), self._samples
        self._samples += len(block)
        self._container.mux(self._audio.encode(packed))

    def _frame(self, picture: VideoFrame) -> StreamFrame:
        """A view of the frame's own planes; another size is scaled."""
        planes = picture.i420.reshape(picture.height * 3 // 2, picture.width)
        frame = StreamFrame.from_numpy_buffer(planes, format="yuv420p")
        frame.colorspace, frame.color_range = Colorspace.ITU601, ColorRange.MPEG
        if (picture.width, picture.height) != (self._shape.width, self._shape.height):
            frame = frame.reformat(self._shape.width, self._shape.height)
        return frame
