"""The viewers' process: reads commands from standard input, one a line, and reports on standard output what its viewers receive.

A viewer is a participant that subscribes to every track of its room. The process ends when its input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import BinaryIO, NoReturn

import numpy as np
from livekit import rtc
from pydantic import BaseModel, ValidationError

from musetalk_agent.protocol.sdk_errors import clean_up
from musetalk_tools.loadtest.speech_source import Loudness, Whiteness
from musetalk_tools.loadtest.viewer_messages import (
    LINE_LIMIT,
    Joined,
    JoinViewer,
    Left,
    Link,
    Seen,
    ViewersReady,
    line,
    viewer_commands,
)

log = logging.getLogger(__name__)

RATE = 16_000
REPORT_S = 0.5
_CONNECT_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 2.0
_BLANK = 16  # pixels: the SFU's stand-in for a track that ended is smaller
_QUEUE = 50  # frames or blocks that wait for this process; then the oldest go, which shows as a gap


class Viewer:
    """Joins, watches, leaves. `run()` ends after `leave()`, and reports `left` last."""

    def __init__(self, join: JoinViewer, report: Callable[[Joined | Seen | Link | Left], None]) -> None:
        self._join = join
        self._send = report
        self._room = rtc.Room()
        self._leaving = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._frames: list[float] = []
        self._whites: list[float] = []
        self._sounds: list[Loudness] = []

    def leave(self) -> None:
        """Ends `run()`, in bounded time."""
        self._leaving.set()

    async def run(self) -> None:
        """The whole life. Is not to be cancelled: `leave` ends it."""
        name = self._join.name
        self._room.on("track_subscribed", self._subscribed)
        for state in ("reconnecting", "reconnected"):
            self._room.on(state, lambda state=state: self._send(Link(name=name, state=state)))
        self._room.on("disconnected", self._disconnected)
        try:
            # never cancelled: a connect that is dropped half-way ends in a panic of the native library
            options = rtc.RoomOptions(connect_timeout=_CONNECT_TIMEOUT_S)
            await self._room.connect(self._join.url, self._join.token, options)
        except rtc.ConnectError as error:
            self._send(Joined(name=name, error=str(error).replace(self._join.token, "…")[:500]))
            self._send(Left(name=name))
            return
        self._send(Joined(name=name))
        while not self._leaving.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await self._leaving.wait()
            self._report()
        await self._go()

    def _report(self) -> None:
        onsets = [at for sound in self._sounds for at in sound.onsets]
        offsets = [at for sound in self._sounds for at in sound.offsets]
        self._send(
            Seen(
                name=self._join.name,
                frames=self._frames.copy(),
                whites=self._whites.copy(),
                onsets=sorted(onsets),
                offsets=sorted(offsets),
            )
        )
        self._frames.clear()
        self._whites.clear()
        for sound in self._sounds:
            sound.onsets.clear()
            sound.offsets.clear()

    async def _go(self) -> None:
        counted = Left(name=self._join.name)
        if self._room.isconnected():
            await clean_up(self._count(counted), _CLOSE_TIMEOUT_S, log)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._report()
        await clean_up(self._room.disconnect(), _CLOSE_TIMEOUT_S, log)
        self._send(counted)

    async def _count(self, left: Left) -> None:
        stats = await self._room.get_rtc_stats()
        for each in (*stats.subscriber_stats, *stats.publisher_stats):  # one connection may serve both
            if each.WhichOneof("stats") != "inbound_rtp":
                continue
            received, inbound = each.inbound_rtp.received, each.inbound_rtp.inbound
            left.packets_received += received.packets_received
            left.packets_lost += max(0, received.packets_lost)
            left.frames_dropped += inbound.frames_dropped
            left.freezes += inbound.freeze_count
            left.concealed_s += max(0, inbound.concealed_samples - inbound.silent_concealed_samples) / 48_000

    def _subscribed(
        self, track: rtc.Track, _publication: rtc.RemoteTrackPublication, _who: rtc.RemoteParticipant
    ) -> None:
        video = track.kind == rtc.TrackKind.KIND_VIDEO
        self._tasks.append(asyncio.create_task(self._watch(track) if video else self._listen(track)))

    async def _watch(self, track: rtc.Track) -> None:
        centre = Whiteness()
        stream = rtc.VideoStream(track, capacity=_QUEUE, format=rtc.VideoBufferType.I420)
        try:
            async for event in stream:
                frame = event.frame
                if frame.width < _BLANK:
                    continue
                at = time.monotonic()
                luma = np.frombuffer(frame.data, np.uint8, frame.width * frame.height)
                centre.push(at, luma.reshape(frame.height, frame.width))
                self._frames.append(at)
                self._whites += centre.whites
                centre.whites.clear()
        finally:
            await stream.aclose()

    async def _listen(self, track: rtc.Track) -> None:
        sound = Loudness(RATE)
        self._sounds.append(sound)
        stream = rtc.AudioStream(track, capacity=_QUEUE, sample_rate=RATE, num_channels=1)
        try:
            async for event in stream:
                sound.push(time.monotonic(), np.frombuffer(event.frame.data, np.int16))
        finally:
            await stream.aclose()

    def _disconnected(self, reason: int) -> None:
        if not self._leaving.is_set():
            why = rtc.DisconnectReason.Name(reason)  # type: ignore[arg-type]  # the SDK hands out the bare integer
            self._send(Link(name=self._join.name, state="disconnected", reason=why))


_UNREAD_BYTES = 4 << 20
"""Past this much unread the load generator hangs, and gets no more reports."""
_GOODBYE_S = 8.0


class Viewers:
    """The viewers of this process."""

    def __init__(self, out: asyncio.WriteTransport) -> None:
        self._out = out
        self._viewers: dict[str, Viewer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def report(self, message: BaseModel) -> None:
        """Queues a message; never blocks."""
        if self._out.get_write_buffer_size() < _UNREAD_BYTES:
            self._out.write(line(message))

    def take(self, text: bytes) -> None:
        """Carries out one command. Raises ValidationError for an invalid one."""
        said = viewer_commands.validate_json(text)
        if isinstance(said, JoinViewer):
            viewer = self._viewers[said.name] = Viewer(said, self.report)
            task = asyncio.create_task(viewer.run(), name=f"viewer-{said.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif said.name in self._viewers:
            self._viewers.pop(said.name).leave()

    async def aclose(self) -> None:
        """Everybody leaves, in bounded time."""
        for viewer in self._viewers.values():
            viewer.leave()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GOODBYE_S)


async def _serve(replies: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, replies)
    source = asyncio.StreamReader(limit=LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin)
    crowd = Viewers(out)
    crowd.report(ViewersReady())
    try:
        while text := await source.readline():
            crowd.take(text)
    except (ValidationError, ValueError) as error:
        print(f"no order of a load generator: {type(error).__name__}", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        await crowd.aclose()


def main() -> NoReturn:
    """Serves until the input closes, and ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the load generator ends us
    logging.getLogger("livekit").setLevel(logging.ERROR)  # what it warns of shows in the figures: gaps, losses
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # native code that prints writes to standard error, not into the pipe
    asyncio.run(_serve(replies))
    os._exit(0)  # the rooms are left: the SDK's own tidying up beside its threads panics now and then


if __name__ == "__main__":
    main()
