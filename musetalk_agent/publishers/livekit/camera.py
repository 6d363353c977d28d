"""Pictures into the SDK: copied as they are, or made smaller and fewer where the network or the encoder cannot keep up."""

from __future__ import annotations

import cv2
import numpy as np
from livekit import rtc

from musetalk_agent.media_types import Pixels, VideoFrame


class Camera:
    """A video source that shows `first` from the start.

    `scale` (0 … 1] is the size of what is published by that of what is pushed; only every `fps_divisor`-th picture goes.
    """

    def __init__(self, first: VideoFrame) -> None:
        self.source = rtc.VideoSource(first.width, first.height)
        self.scale = 1.0
        self.fps_divisor = 1
        self._count = 0
        self._scratch: Pixels | None = None
        self.push(first)

    def push(self, frame: VideoFrame) -> bool:
        """Whether the picture was shown, and not left out."""
        self._count += 1
        if self._count % self.fps_divisor:
            return False
        frame = frame if self.scale == 1.0 else smaller(frame, self.scale)
        planes = frame.i420
        if not planes.flags.writeable:
            # the SDK takes the address of writable buffers only; it copies before it returns
            if self._scratch is None or len(self._scratch) != len(planes):
                self._scratch = np.empty(len(planes), np.uint8)
            np.copyto(self._scratch, planes)
            planes = self._scratch
        data = memoryview(planes)  # type: ignore[arg-type]  # arrays declare themselves buffers from Python 3.12 on
        self.source.capture_frame(rtc.VideoFrame(frame.width, frame.height, rtc.VideoBufferType.I420, data))
        return True

    async def aclose(self) -> None:
        """Frees the source."""
        await self.source.aclose()


def smaller(frame: VideoFrame, scale: float) -> VideoFrame:
    """The picture at `scale` times its size, in multiples of 4 pixels."""
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
