"""Pushes to an RTMP or RTMPS server: H.264 and AAC in FLV tags. docs/topics/rtmp.md has the measurements."""

from __future__ import annotations

from collections.abc import Callable

import av
from av.container import OutputContainer

from musetalk_agent.clock import Clock
from musetalk_agent.publishers.rtmp_address import RtmpAddress
from musetalk_agent.publishers.rtmp_link import RtmpLink
from musetalk_agent.publishers.stream import Connection, StreamOptions, StreamSink
from musetalk_agent.publishers.stream_encoder import Codecs

_FLV = {"flvflags": "no_duration_filesize", "flush_packets": "1"}
_CODECS = Codecs(
    video={
        "preset": "veryfast",
        "tune": "zerolatency",  # no B-frames, no look-ahead
        "profile": "main",
        "forced-idr": "1",
        "x264-params": "scenecut=0",
    },
    audio="aac",
    channels=1,
    audio_bitrate=96_000,
    audio_options={},
    keyframe_s=2.0,
)


class _RtmpPush(RtmpLink):
    """A link with FFmpeg's FLV muxer in front of it."""

    def connect(self) -> OutputContainer:
        """Begins to publish; see `Connection.connect`."""
        self.open()
        return av.open(self, "w", format="flv", options=_FLV)


class RtmpSink(StreamSink):
    """H.264 and AAC to `options.address`, which `check_rtmp` made. Raises ValueError without one."""

    name = "rtmp"
    codecs = _CODECS

    def __init__(self, options: StreamOptions, clock: Clock, on_change: Callable[[], None]) -> None:
        super().__init__(options, clock, on_change)
        if options.address is None:
            raise ValueError("RTMP is pushed to a checked address only: see check_rtmp")
        self._address: RtmpAddress = options.address

    def _connect(self, attempt: int) -> Connection:
        return _RtmpPush(self._address, attempt)

    def _tell(self, error: Exception) -> str:
        return super()._tell(error).replace(self._address.key, "…")
