"""Pushes to a LiveKit server by WHIP: FFmpeg's own WebRTC, in a process of its own, for when the SDK is what failed.

It needs UDP as the SDK does. The identity is that of the token, so the SDK has to have left the room.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import select
import subprocess
import sys
import time

from musetalk_agent.publishers.stream.encoder import QueuedAudio, QueuedFrame, StreamShape
from musetalk_agent.publishers.stream.records import audio_record, bitrate_record, end_record, frame_head
from musetalk_agent.publishers.stream.sink import StreamConnection, StreamSink

_CONNECT_S = 8.0
_STALL_S = 2.0
_END_S = 1.5
_TICK_S = 0.1
_PIPE = 1 << 20


def whip_url(livekit_url: str) -> str:
    """Where a LiveKit server takes WHIP: `ws(s)://host` as `http(s)://host/whip/v1`."""
    scheme, _, rest = livekit_url.partition("://")
    return f"{scheme.replace('ws', 'http', 1)}://{rest.rstrip('/')}/whip/v1"


class _WhipPush:
    """A `whip/worker.py` process and the pipes to it. The token goes through the pipe, where no list of processes shows it."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._aborted = False
        self.sent = 0

    def open(self, shape: StreamShape) -> None:
        """Starts the process and waits until it is connected. Raises OSError."""
        command = [sys.executable, "-m", "musetalk_agent.publishers.whip.worker"]
        pipe = subprocess.PIPE
        self._process = process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0
        )
        assert process.stdin is not None and process.stdout is not None
        for end in (process.stdin, process.stdout):
            os.set_blocking(end.fileno(), False)
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, _PIPE)
        about = {"url": self._url, "token": self._token, "shape": dataclasses.asdict(shape)}
        self._write(json.dumps(about).encode() + b"\n")
        deadline = time.monotonic() + _CONNECT_S
        while b"up\n" not in self._said:
            self._wait(process.stdout.fileno(), select.POLLIN, deadline)
            self.poll()

    def play(self, sound: QueuedAudio) -> None:
        """Hands audio over."""
        self._write(audio_record(sound))

    def show(self, picture: QueuedFrame) -> None:
        """Hands a frame over."""
        self._write(frame_head(picture))
        self._write(picture.frame.i420.data)

    def set_bitrate(self, bitrate: int) -> None:
        """Takes effect with the next frame."""
        self._write(bitrate_record(bitrate))

    def poll(self) -> None:
        """Raises OSError when the process has ended, with what it said."""
        assert self._process is not None and self._process.stdout is not None
        output = self._process.stdout.read(4096)
        if output is None:
            return
        self._said = (self._said + output)[-4096:]
        if b"error " in self._said or not output:
            reason = self._said.rpartition(b"error ")[2].decode("utf-8", "replace").strip()
            raise ConnectionError(errno.ECONNABORTED, reason if b"error " in self._said else "the WHIP process ended")

    def pending(self) -> int:
        """UDP: what has arrived is not known."""
        return 0

    def finish(self) -> None:
        """Ends the session at the server, so that the participant leaves at once."""
        assert self._process is not None
        self._write(end_record())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def abort(self) -> None:
        """Ends the process; from any thread."""
        self._aborted = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the process, if it still runs, and frees the pipes. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for end in (process.stdin, process.stdout):
            if end is not None:
                end.close()

    def _write(self, data: bytes | memoryview) -> None:
        assert self._process is not None and self._process.stdin is not None
        left = memoryview(data).cast("B")
        self.sent += len(left)
        while left:
            try:
                left = left[os.write(self._process.stdin.fileno(), left) :]
            except BlockingIOError:
                self._wait(self._process.stdin.fileno(), select.POLLOUT, time.monotonic() + _STALL_S)
            except BrokenPipeError:
                self.poll()
                raise

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        while not poll.poll(_TICK_S * 1000):
            if self._aborted or time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the WHIP process does not go on")


class WhipSink(StreamSink):
    """H.264 (baseline) and Opus to the server at `options.url` (ws or wss), as the participant of `options.token`."""

    name = "whip"

    def _connect(self, attempt: int) -> StreamConnection:
        return _WhipPush(whip_url(self.options.url), self.options.token or "")
