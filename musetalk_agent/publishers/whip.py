"""Pushes to a LiveKit server by WHIP: FFmpeg's own WebRTC, for when the SDK is what failed.

It needs UDP as the SDK does. The identity is that of the token, so the SDK has to have left the room.
"""

from __future__ import annotations

import av
from av.container import OutputContainer

from musetalk_agent.publishers.stream import Connection, StreamSink
from musetalk_agent.publishers.stream_encoder import Codecs

_CONNECT_S = 5.0
_HANDSHAKE_MS = 3000
_CODECS = Codecs(
    video={
        "preset": "veryfast",
        "tune": "zerolatency",
        "profile": "baseline",
        "forced-idr": "1",
        "x264-params": "scenecut=0",
    },
    audio="libopus",
    channels=2,  # its muxer takes nothing else
    audio_bitrate=48_000,
    audio_options={"application": "lowdelay", "frame_duration": "20"},
    keyframe_s=1.0,  # the muxer cannot hear a viewer ask for one
)


def whip_url(livekit_url: str) -> str:
    """Where a LiveKit server takes WHIP: `ws(s)://host` as `http(s)://host/whip/v1`."""
    scheme, _, rest = livekit_url.partition("://")
    return f"{scheme.replace('ws', 'http', 1)}://{rest.rstrip('/')}/whip/v1"


class _WhipPush:
    """FFmpeg's WHIP muxer. It connects while it writes the header, and is ended by its time-outs only."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token
        self.sent = 0

    def connect(self) -> OutputContainer:
        options = {"authorization": self._token, "handshake_timeout": str(_HANDSHAKE_MS)}
        return av.open(self._url, "w", format="whip", options=options, timeout=_CONNECT_S)

    def poll(self) -> None:
        """Writing tells."""

    def pending(self) -> int:
        """UDP: nobody knows."""
        return 0

    def finish(self) -> None:
        """The muxer's trailer has ended the session at the server."""

    def abort(self) -> None:
        """Its time-outs do."""

    def close(self) -> None:
        """The container is closed by the sink."""


class WhipSink(StreamSink):
    """H.264 (baseline) and Opus to the server at `options.url` (ws or wss), as the participant of `options.token`."""

    name = "whip"
    codecs = _CODECS

    def _connect(self, attempt: int) -> Connection:
        return _WhipPush(whip_url(self.options.url), self.options.token or "")
