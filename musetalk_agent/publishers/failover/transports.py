"""The transports of a session (room, RTMP stream, WHIP) and the probe of the room, opened and closed as the policy decides.

Nothing here waits: what takes time is a task, and its outcome an event for the policy. A room that was left, and a stream that was
closed, end in the background; a stream of the room's own identity has ended before the room is joined.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from livekit import rtc

from musetalk_agent.clock import Clock
from musetalk_agent.errors import PublishFailed
from musetalk_agent.media.playout import PlayoutClock
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors
from musetalk_agent.publishers.failover.policy import Event, TransportKind
from musetalk_agent.publishers.livekit.detached_connect import abandon
from musetalk_agent.publishers.livekit.publisher import LiveKitOptions, LiveKitPublisher
from musetalk_agent.publishers.livekit.video_track import video_bitrate
from musetalk_agent.publishers.rtmp.address import RtmpAddress
from musetalk_agent.publishers.rtmp.sink import RtmpSink
from musetalk_agent.publishers.stream.sink import StreamOptions, StreamSink
from musetalk_agent.publishers.whip.sink import WhipSink
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

HEALTHY_S = 2.0
_EVERY_S = 1.0
_HTTP_TIMEOUT_S = 1.0
_CONNECT_TIMEOUT_S = 3.0
_JOIN_S = 75.0
"""No join is waited for longer: through blocked UDP it fails by itself after a minute."""


async def answers(livekit_url: str) -> bool:
    """Whether the SFU's HTTP side says anything, within a second. On a socket for the reasons of decision 17."""
    parts = urlsplit(livekit_url)
    tls = parts.scheme in ("wss", "https")
    try:
        async with asyncio.timeout(_HTTP_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if tls else 80), ssl=tls)
            try:
                writer.write(f"HEAD / HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
                return (await reader.read(5)).startswith(b"HTTP")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, ValueError):  # ValueError: a port or a host name that cannot be
        return False


class Probe:
    """Tries until it is closed.

    A try looks whether the SFU answers over HTTP, then joins, which needs UDP both ways, and stays a while. A join through
    blocked UDP goes on for a minute, and succeeds at once when the way is free.

    Args:
        token: joins hidden; None leaves it at HTTP.
        report: called with the outcome of every try.
        healthy_s: how long a join has to hold.
    """

    def __init__(self, url: str, token: str | None, report: Callable[[bool], None], healthy_s: float) -> None:
        self._url, self._token, self._report = url, token, report
        self._healthy_s = healthy_s
        self._room: rtc.Room | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(supervise("probe", self._run), name="probe")

    async def aclose(self) -> None:
        """Ends it and leaves the room; a join under way is let go. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._leave()

    async def _run(self) -> None:
        while True:
            await self._leave()
            healthy = await answers(self._url) and await self._try()
            self._report(healthy)
            await self._leave()
            await asyncio.sleep(_EVERY_S)

    async def _try(self) -> bool:
        if self._token is None:
            await asyncio.sleep(self._healthy_s)
            return await answers(self._url)
        try:
            with sdk_errors():
                self._room = room = rtc.Room()
                options = rtc.RoomOptions(auto_subscribe=False, connect_timeout=_CONNECT_TIMEOUT_S)
                self._connecting = asyncio.create_task(room.connect(self._url, self._token, options), name="probe-join")
                async with asyncio.timeout(_JOIN_S):
                    await asyncio.shield(self._connecting)
        except (SdkError, TimeoutError) as error:  # this try has failed, the next one comes
            kind = type(error.raised if isinstance(error, SdkError) else error)
            log.info("a probe did not join", extra={"error": kind.__name__})  # its text quotes the token
            return False
        await asyncio.sleep(self._healthy_s)
        return room.connection_state == rtc.ConnectionState.CONN_CONNECTED

    async def _leave(self) -> None:
        """Leaves the room now, or in the background while it is still being joined."""
        room, self._room = self._room, None
        if room is not None and self._connecting is not None:
            self._leaving = abandon(room, self._connecting)
        if self._leaving is not None and self._connecting is not None and self._connecting.done():
            await asyncio.shield(self._leaving)


NEVER_REJOIN = frozenset({"PARTICIPANT_REMOVED", "ROOM_DELETED", "ROOM_CLOSED", "DUPLICATE_IDENTITY"})
"""The avatar's stay was ended on purpose, or its identity was taken: joining again would work against that."""
_QUICK_S = 2.0
_REFUSAL = re.compile(r"\b40[13]\b")
_CLOSE_S = 7.0
_INGRESS_FRAME_BYTES = 1500
"""Ingress hands on what it gets by some kilobytes: of a still frame that is seconds, of frames this large a fraction of one."""

Report = Callable[[Event, str], None]


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """What ways there are.

    `address` is where RTMP goes, if anywhere; `ingress` and `beside` are those of `RtmpTarget`. Without `joins` there is no room.
    """

    room: LiveKitOptions
    address: RtmpAddress | None = None
    ingress: bool = False
    beside: bool = False
    joins: bool = True
    probe_token: str | None = None


class TransportManager:
    """Holds what is open.

    Args:
        report: takes what happens.
        on_reading: called when the room's statistics were read.
        on_joined: called with each room that is joined, before anything is published in it.
    """

    def __init__(
        self,
        options: TransportOptions,
        clock: Clock,
        playout: PlayoutClock,
        report: Report,
        on_reading: Callable[[], None],
        on_joined: Callable[[rtc.Room], None],
    ) -> None:
        self._options, self._clock, self._playout = options, clock, playout
        self._report, self._on_reading, self._on_joined = report, on_reading, on_joined
        self.room: LiveKitPublisher | None = None
        self.stream: StreamSink | None = None
        self.whip: StreamSink | None = None
        self.error: PublishFailed | None = None
        self.heard_at = self.joined_at = clock.now()
        self.attribute = "idle"
        self._token = options.room.token
        self.latest: VideoFrame | None = None
        self._probe: Probe | None = None
        self._joining: asyncio.Task[None] | None = None
        self._pending: LiveKitPublisher | None = None
        self._exclusive: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._up = {"rtmp": False, "whip": False}
        self._acknowledged = 0

    @property
    def reads(self) -> bool:
        """A room's statistics are being read, so that `on_reading` is called by itself."""
        return self.room is not None

    @property
    def watched(self) -> bool:
        """False when the room is the only transport and its video has no subscriber. True when that is not known."""
        if self.room is None or self.stream is not None or self.whip is not None:
            return True
        return self.room.state.watched or self.room.state.reconnecting

    def show(self, frame: VideoFrame, due: float | None = None) -> None:
        """A frame for everything that is open; `due` as in `Publisher.push_video`."""
        self.latest = frame
        now = self._clock.now()
        for room in (self.room, self._pending):
            if room is not None:
                room.push_video(frame, due)
        for sink in (self.stream, self.whip):
            if sink is not None:
                sink.offer_video(now, frame)

    def audio_sinks(self, rung: TransportKind) -> list[StreamSink]:
        """The streams that take the audio while `rung` is in use; the room itself is not among them.

        A stream that leads into the room (WHIP, an ingress) takes audio only where the agent publishes it: else it would be heard
        twice. A plain RTMP address is another place, and always has the audio.
        """
        options = self._options
        wants_whip = rung is TransportKind.WHIP and options.room.publishes_audio
        wants_rtmp = (rung is TransportKind.RTMP or options.beside) and (
            options.room.publishes_audio or not options.ingress
        )
        offered = ((self.whip, wants_whip), (self.stream, wants_rtmp))
        return [sink for sink, wanted in offered if sink is not None and wanted]

    def clear_audio(self, since: float = -math.inf) -> None:
        """Drops the audio that waits in any stream and would be heard at `since` (monotonic seconds) or later."""
        for sink in (self.stream, self.whip):
            if sink is not None:
                sink.clear_audio(since)

    def frames_acknowledged(self) -> int:
        """Frames that the other side is known to have, over all the ways so far."""
        current = self.room.state.acknowledged_frames if self.room is not None else 0
        sinks = sum(s.state.frames_sent for s in (self.stream, self.whip) if s is not None and self.room is None)
        return self._acknowledged + current + sinks

    # --- the room ----------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Joins under the session's identity, once the streams of that identity have ended."""
        options = replace(self._options.room, token=self._token)
        room = LiveKitPublisher(options, self._clock, self._playout, self._on_reading, self._on_joined)
        self._pending = room
        self._joining = self._spawn(self._join(room), "failover-join")

    async def _join(self, room: LiveKitPublisher) -> None:
        assert self.latest is not None
        if self._exclusive:
            await asyncio.wait(self._exclusive)
        begun = self._clock.now()
        try:
            with sdk_errors(PublishFailed):
                await room.open(self.latest, lambda reason: self._on_ended(room, reason))
        except (PublishFailed, SdkError, TimeoutError) as error:  # the policy has other transports
            self._pending = None
            if isinstance(error, PublishFailed):
                self.error = error
            log.warning("the room was not joined", extra={"room": self._options.room.room, "error": str(error)})
            self._spawn(room.aclose(), "failover-leave")
            self._report(await self._judge(error, self._clock.now() - begun), "")
            return
        self._pending, self.room, self.joined_at = None, room, self._clock.now()
        self._report(Event.JOINED, "")
        if self.attribute != "idle":
            await room.set_state(self.attribute)

    async def _judge(self, error: Exception, took_s: float) -> Event:
        text = str(error.__cause__ or error)
        if _REFUSAL.search(text):
            return Event.JOIN_REFUSED
        if took_s < _QUICK_S and await answers(self._options.room.url):
            return Event.JOIN_BROKE
        return Event.JOIN_FAILED

    def leave_room(self) -> None:
        """Leaves the room in the background; reports `ROOM_LEFT`."""
        room, self.room = self.room, None
        if room is not None:
            self._forget(room)
            self._spawn(self._leave(room), "failover-leave")

    async def _leave(self, room: LiveKitPublisher) -> None:
        await room.aclose()
        self._report(Event.ROOM_LEFT, "")

    def _on_ended(self, room: LiveKitPublisher, reason: str) -> None:
        if room is not self.room:
            return
        self.room = None
        self._forget(room)
        self._spawn(room.aclose(), "failover-leave")
        self._report(Event.ROOM_ENDED if reason in NEVER_REJOIN else Event.ROOM_LOST, reason)

    def _forget(self, room: LiveKitPublisher) -> None:
        self._token, self.heard_at = room.token, room.liveness.heard_at
        self._acknowledged += room.state.acknowledged_frames

    # --- streams -----------------------------------------------------------------------------------------------------

    def open_stream(self) -> None:
        """Begins to connect to the RTMP address. Idempotent."""
        if self.stream is None:
            self.stream = RtmpSink(self._stream_options(), self._clock, self._on_stream)
            self.stream.start()

    def close_stream(self) -> None:
        """Ends it, in the background, after what it holds."""
        sink, self.stream = self.stream, None
        self._up["rtmp"] = False
        if sink is not None:
            self._acknowledged += sink.state.frames_sent
            task = self._spawn(sink.aclose(), "failover-stream-end")
            if self._options.ingress:
                self._exclude(task)

    def open_whip(self) -> None:
        """Begins to connect by WHIP."""
        if self.whip is None:
            self.whip = WhipSink(self._stream_options(), self._clock, self._on_whip)
            self.whip.start()

    def close_whip(self) -> None:
        """Ends it, in the background."""
        sink, self.whip = self.whip, None
        self._up["whip"] = False
        if sink is not None:
            self._acknowledged += sink.state.frames_sent
            self._exclude(self._spawn(sink.aclose(), "failover-whip-end"))

    def _stream_options(self) -> StreamOptions:
        assert self.latest is not None
        room, frame = self._options.room, self.latest
        return StreamOptions(
            url=room.url,
            fps=room.fps,
            width=frame.width,
            height=frame.height,
            bitrate=video_bitrate(frame),
            address=self._options.address,
            token=self._token,
            least_frame_bytes=_INGRESS_FRAME_BYTES if self._options.ingress else 0,
        )

    def _on_stream(self) -> None:
        if self.stream is not None:
            self._note(self.stream, Event.STREAM_UP, Event.STREAM_DOWN)

    def _on_whip(self) -> None:
        if self.whip is not None:
            self._note(self.whip, Event.WHIP_UP, Event.WHIP_DOWN)

    def _note(self, sink: StreamSink, up: Event, down: Event) -> None:
        if sink.state.error:
            log.info("a stream is not connected", extra={"sink": sink.name, "error": sink.state.error})
        if sink.state.connected != self._up[sink.name]:
            self._up[sink.name] = sink.state.connected
            self._report(up if sink.state.connected else down, sink.state.error or "")

    # --- the probe ---------------------------------------------------------------------------------------------------

    def probe_if(self, wanted: bool, healthy_s: float = 0.0) -> None:
        """Begins or ends the probing of the room."""
        if wanted and self._probe is None:
            options = self._options
            self._probe = Probe(options.room.url, options.probe_token, self._on_probe, healthy_s)
        elif not wanted and self._probe is not None:
            probe, self._probe = self._probe, None
            self._spawn(probe.aclose(), "failover-probe-end")

    def _on_probe(self, healthy: bool) -> None:
        self._report(Event.PROBE_OK if healthy else Event.PROBE_FAILED, "")

    # --- the end -----------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Leaves and ends everything, within 7 s; a join that hangs is let go. Idempotent."""
        self.probe_if(False)
        if self._joining is not None and self._pending is not None:
            self._joining.cancel()
            self._spawn(self._pending.aclose(), "failover-leave")
            self._pending = None
        self.leave_room()
        self.close_stream()
        self.close_whip()
        while self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
            if late:
                log.warning("leaving takes long", extra={"tasks": [task.get_name() for task in late]})
                return

    def _exclude(self, task: asyncio.Task[None]) -> None:
        self._exclusive.add(task)
        task.add_done_callback(self._exclusive.discard)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of a transport broke", exc_info=error, extra={"task": task.get_name()})
