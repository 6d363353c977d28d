"""Pushes to an RTMP or RTMPS server: H.264 and AAC in FLV tags. docs/explanation/rtmp.md has the measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import av
from av.container import OutputContainer

from musetalk_agent.clock import Clock
from musetalk_agent.publishers.rtmp.address import RtmpAddress
from musetalk_agent.publishers.rtmp.connection import RtmpLink
from musetalk_agent.publishers.stream.encoder import Codecs, QueuedAudio, QueuedFrame, StreamEncoder, StreamShape
from musetalk_agent.publishers.stream.sink import StreamConnection, StreamOptions, StreamSink

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


class _RtmpPush:
    """A link, with the encoders and FFmpeg's FLV muxer in front of it."""

    def __init__(self, address: RtmpAddress, attempt: int, least_frame_bytes: int) -> None:
        self._link = RtmpLink(address, attempt, least_frame_bytes)
        self._container: OutputContainer | None = None
        self._encoder: StreamEncoder

    @property
    def sent(self) -> int:
        """Bytes given to the socket."""
        return self._link.sent

    def open(self, shape: StreamShape) -> None:
        """Connects and begins the stream."""
        self._link.open()
        self._container = av.open(self._link, "w", format="flv", options=_FLV)
        self._encoder = StreamEncoder(self._container, shape, _CODECS)
        self._encoder.open()

    def play(self, sound: QueuedAudio) -> None:
        """Adds audio."""
        self._encoder.play(sound)

    def show(self, picture: QueuedFrame) -> None:
        """Adds a frame."""
        self._encoder.show(picture)

    def set_bitrate(self, bitrate: int) -> None:
        """Takes effect with the next frame."""
        self._encoder.set_bitrate(bitrate)

    def poll(self) -> None:
        """Raises when the connection is over."""
        self._link.poll()

    def pending(self) -> int:
        """Bytes that the server has not acknowledged."""
        return self._link.pending()

    def finish(self) -> None:
        """Ends the stream in order."""
        assert self._container is not None
        self._encoder.finish()
        self._container.close()
        self._link.finish()

    def abort(self) -> None:
        """Makes the call under way fail soon."""
        self._link.abort()

    def close(self) -> None:
        """Frees the socket, and the muxer: what it still writes the link swallows."""
        self._link.close()
        if self._container is not None:
            with contextlib.suppress(OSError, av.FFmpegError):
                self._container.close()


class RtmpSink(StreamSink):
    """H.264 and AAC to `options.address`, which `check_rtmp` made. Raises ValueError without one."""

    name = "rtmp"

    def __init__(self, options: StreamOptions, clock: Clock, on_change: Callable[[], None]) -> None:
        super().__init__(options, clock, on_change)
        if options.address is None:
            raise ValueError("RTMP is pushed to a checked address only: see check_rtmp")
        self._address: RtmpAddress = options.address

    def _connect(self, attempt: int) -> StreamConnection:
        return _RtmpPush(self._address, attempt, self.options.least_frame_bytes)

    def _describe(self, error: Exception) -> str:
        return super()._describe(error).replace(self._address.key, "…")
