"""The video of a room: its source, and how it is encoded there (docs/decisions/0022-video-codec.md)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import cv2
import numpy as np
from livekit import rtc
from livekit.rtc._proto.room_pb2 import DegradationPreference

from musetalk_agent.media_types import Pixels, VideoFrame
from musetalk_agent.protocol.http import VideoCodec

_HEADROOM_FPS = 5
"""Over the frames' rate: the encoder's rate control drops frames that come faster than its maximum."""
_UNWATCHED_S = 0.19
"""At least so long lies between two frames without a subscriber, five a second at 25 fps: the SDK copies each, and one that comes
later needs one soon."""
_CODECS = {VideoCodec.VP8: rtc.VideoCodec.VP8, VideoCodec.H264: rtc.VideoCodec.H264}


class LiveKitVideoSource:
    """A video source that shows `first` from the start.

    `scale` (0 … 1] is the size of what is published by that of what is pushed; only every `fps_divisor`-th frame goes.

    Frames carry the time at which they were due. The SDK drops what follows the frame before too closely, by that time; by the time
    of the call it dropped one in twelve of a process that was late (docs/reference/performance.md, "Codecs and pacing").
    """

    def __init__(self, first: VideoFrame) -> None:
        self.source = rtc.VideoSource(first.width, first.height)
        self.scale = 1.0
        self.fps_divisor = 1
        self._count = 0
        self._shown_at = -math.inf
        self._scratch: Pixels | None = None
        self.push(first)

    def push(self, frame: VideoFrame, due: float | None = None, *, watched: bool = True) -> bool:
        """Whether the frame was shown, and not left out. `due`: monotonic seconds; None for now. Of frames that are not `watched`
        five a second are shown."""
        self._count += 1
        if self._count % self.fps_divisor:
            return False
        at = time.monotonic() if due is None else due
        if not watched and at - self._shown_at < _UNWATCHED_S:
            return False
        self._shown_at = at
        frame = frame if self.scale == 1.0 else smaller(frame, self.scale)
        planes = frame.i420
        if not planes.flags.writeable:
            # the SDK takes the address of writable buffers only; it copies before it returns
            if self._scratch is None or len(self._scratch) != len(planes):
                self._scratch = np.empty(len(planes), np.uint8)
            np.copyto(self._scratch, planes)
            planes = self._scratch
        data = memoryview(planes)  # type: ignore[arg-type]  # arrays declare themselves buffers from Python 3.12 on
        shown = rtc.VideoFrame(frame.width, frame.height, rtc.VideoBufferType.I420, data)
        self.source.capture_frame(shown, timestamp_us=round(1e6 * at))
        return True

    async def aclose(self) -> None:
        """Frees the source."""
        await self.source.aclose()


def smaller(frame: VideoFrame, scale: float) -> VideoFrame:
    """The frame at `scale` times its size, in multiples of 4 pixels."""
    width, height = (max(16, round(side * scale / 4) * 4) for side in (frame.width, frame.height))
    rows, columns = frame.height, frame.width
    luma, chroma = np.split(frame.i420, [rows * columns])
    planes = [luma.reshape(rows, columns), *chroma.reshape(2, rows // 2, columns // 2)]
    sizes = [(width, height), (width // 2, height // 2), (width // 2, height // 2)]
    made = [
        cv2.resize(plane, size, interpolation=cv2.INTER_AREA).ravel() for plane, size in zip(planes, sizes, strict=True)
    ]
    return VideoFrame(
        np.concatenate(made).astype(np.uint8, copy=False), width, height, frame.idle_index, frame.spoken, frame.tag
    )


def video_bitrate(frame: VideoFrame) -> int:
    """Bits per second for frames of this size: 1 Mbit/s at 512×512 and below, 3 Mbit/s at most.

    The SDK sets no least quantiser, so that VP8 spends what it may. Faces of 512 px have a PSNR of 46 to 47 dB with 1 Mbit/s and 48
    with 1.5, which takes a tenth more of the encoder (docs/reference/performance.md).
    """
    pixels = frame.width * frame.height
    return int(min(3_000_000, max(1_000_000, 1_000_000 * pixels / (512 * 512))))


@dataclass(frozen=True, slots=True)
class VideoEncoding:
    """How a room gets the video.

    With `simulcast` frames whose longer side has 480 px or more are published in two sizes, from 960 px on in three. Sizes and
    rates of the lower ones are the library's (docs/explanation/livekit.md).
    """

    codec: VideoCodec = VideoCodec.VP8
    simulcast: bool = False

    def publish_options(self, frame: VideoFrame, fps: int, stream: str) -> rtc.TrackPublishOptions:
        """For a track of frames like this one, in the sync group `stream`. The library's own default for 512×512 would be
        300 kbit/s at 20 fps, with simulcast."""
        return rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_CAMERA,
            stream=stream,
            simulcast=self.simulcast,
            video_codec=_CODECS[self.codec.chosen],
            video_encoding=rtc.VideoEncoding(max_bitrate=video_bitrate(frame), max_framerate=fps + _HEADROOM_FPS),
            degradation_preference=DegradationPreference.DEGRADATION_PREFERENCE_BALANCED,
        )
