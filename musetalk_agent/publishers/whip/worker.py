"""The process that pushes by WHIP. FFmpeg's WHIP connects and ends while PyAV holds the interpreter: no agent can wait for that.

Standard input begins with a line of JSON and goes on with records (`stream/records.py`); standard output reports `up`, and
`error` with the reason before it ends. It ends with its input, and a call of FFmpeg that hangs ends it too.
"""

from __future__ import annotations

import errno
import json
import logging
import signal
import sys
import time
from typing import BinaryIO

import av

from musetalk_agent.publishers.stream.encoder import Codecs, QueuedAudio, QueuedFrame, StreamEncoder, StreamShape
from musetalk_agent.publishers.stream.records import read_records

_HANDSHAKE_MS = 3000
_HANG_S = 8
_END_S = 1
_SILENT_S = 6.5
"""Consent to send (RFC 7675) is asked for every 5 s; after two without an answer the other side is gone. FFmpeg waits 30 s."""
_AUDIO_PATH_S = 0.045
"""A viewer's jitter buffer keeps audio so much longer than frames; measured on loopback, as for the SDK."""
_CODECS = Codecs(
    video={
        "preset": "veryfast",
        "tune": "zerolatency",
        "profile": "baseline",
        "forced-idr": "1",
        "x264-params": "scenecut=0",
    },
    audio="libopus",
    audio_bitrate=48_000,
    channels=2,  # its muxer takes nothing else
    audio_options={"application": "lowdelay", "frame_duration": "20"},
    keyframe_s=1.0,  # the muxer cannot hear a viewer ask for one
)


class _Consent(logging.Handler):
    """Hears from FFmpeg's log when the server has answered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "Consent Freshness check received" in message:
            self.asked = None
        elif "Consent Freshness check sent" in message and self.asked is None:
            self.asked = time.monotonic()


def _report(line: str) -> None:
    sys.stdout.write(line.replace("\n", " ") + "\n")
    sys.stdout.flush()


def _push(source: BinaryIO, consent: _Consent) -> None:
    about = json.loads(source.readline())
    options = {"authorization": about["token"], "handshake_timeout": str(_HANDSHAKE_MS)}
    container = av.open(about["url"], "w", format="whip", options=options)
    try:
        signal.alarm(_HANG_S)  # its default is to end the process, also from within FFmpeg
        encoder = StreamEncoder(container, StreamShape(**about["shape"]), _CODECS)
        encoder.open()
        signal.alarm(0)
        _report("up")
        _carry(source, encoder, consent)
        encoder.finish()
    except (OSError, av.FFmpegError) as error:
        _report(f"error {error.strerror or type(error).__name__}")  # before the end, which may take until the alarm
        raise
    finally:
        signal.alarm(_END_S)
        container.close()


def _carry(source: BinaryIO, encoder: StreamEncoder, consent: _Consent) -> None:
    for item in read_records(source):
        if isinstance(item, QueuedAudio):
            encoder.play(QueuedAudio(item.at - _AUDIO_PATH_S, item.block))
        elif isinstance(item, QueuedFrame):
            encoder.show(item)
        else:
            encoder.set_bitrate(item)
        if consent.asked is not None and time.monotonic() - consent.asked > _SILENT_S:
            raise TimeoutError(errno.ETIMEDOUT, "the server answers nothing")


def main() -> None:
    """Pushes what comes; the exit code is 0 when nothing failed."""
    consent = _Consent()
    logging.getLogger("libav").addHandler(consent)
    logging.getLogger("libav").setLevel(1)  # FFmpeg has levels below DEBUG
    logging.getLogger("libav").propagate = False
    av.logging.set_level(av.logging.DEBUG)
    try:
        _push(sys.stdin.buffer, consent)
    except (OSError, av.FFmpegError):
        sys.exit(1)


if __name__ == "__main__":
    main()
