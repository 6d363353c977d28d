"""Publishes to a LiveKit room: one audio and one video track in one sync group, paced by us and never by wall clock.

The traps this avoids are listed, with their sources, in docs/topics/livekit.md: connect is never cancelled, nothing is published
twice after a reconnect, a real picture is there before the track is, audio is 48 kHz in whole 10 ms with one capture at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
from livekit import rtc
from livekit.rtc._proto.room_pb2 import AudioEncoding, DegradationPreference

from musetalk_agent.clock import Clock, utc_now
from musetalk_agent.errors import PublishFailed
from musetalk_agent.media import Pcm, Pixels, VideoFrame
from musetalk_agent.protocol.http import TrackInfo
from musetalk_agent.publishers.base import Lost, PublisherState
from musetalk_agent.sync.playout import PlayoutClock
from musetalk_agent.sync.segment import ROOM_RATE

log = logging.getLogger(__name__)

QUEUE_MS = 60
"""Sound that waits in the SDK; with one block of 40 ms on top the most is 100 ms, which is the tail a barge-in would leave."""
SOUND_PATH_S = 0.035
"""Sound reaches a viewer this much later than a picture that leaves at the same moment: an Opus packet goes out when its 20 ms are
complete, and the jitter buffers differ. Measured at a viewer on loopback; receivers leave differences under 30 ms uncorrected."""
CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 5.0
_STATS_PERIOD_S = 1.0
_GRACE_AFTER_STALL_S = 0.002  # a capture that took longer than this has waited for the queue to drain
STREAM = "avatar"


@dataclass(frozen=True, slots=True)
class LiveKitOptions:
    """How to join and what to publish.

    `max_bitrate` None chooses by picture size: 1.5 Mbit/s up to 512×512, 3 Mbit/s up to 720p. The library's own default for 512×512
    would be 300 kbit/s at 20 fps.
    """

    url: str
    token: str
    room: str
    fps: int
    max_bitrate: int | None = None


def _bitrate(frame: VideoFrame) -> int:
    pixels = frame.width * frame.height
    return int(min(3_000_000, max(1_200_000, 1_500_000 * pixels / (512 * 512))))


class LiveKitPublisher:
    """A participant of kind agent that only publishes."""

    name = "livekit"

    def __init__(self, options: LiveKitOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self.state = PublisherState()
        self.playout = PlayoutClock(clock, ROOM_RATE, path_s=SOUND_PATH_S)
        self._room = rtc.Room()
        self._audio: rtc.AudioSource | None = None
        self._video: rtc.VideoSource | None = None
        self._publications: list[rtc.LocalTrackPublication] = []
        self._lost: Lost | None = None
        self._scratch: Pixels | None = None
        self._closing = False
        self._stats: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None

    async def open(self, first: VideoFrame, lost: Lost) -> None:
        """Joins and publishes; see `Publisher.open`. The room's tracks are acknowledged by the server when this returns."""
        self._lost = lost
        self._listen()
        self._audio = rtc.AudioSource(ROOM_RATE, 1, queue_size_ms=QUEUE_MS)
        self._video = rtc.VideoSource(first.width, first.height)
        self.push_video(first)
        options = rtc.RoomOptions(auto_subscribe=False, dynacast=False, connect_timeout=CONNECT_TIMEOUT_S)
        self._connecting = asyncio.create_task(
            self._room.connect(self._options.url, self._options.token, options), name="livekit-connect"
        )
        try:
            # never cancelled: a connect that is dropped half-way ends in a panic of the native library (rust-sdks#1340)
            await asyncio.shield(self._connecting)
            await self._publish(first)
        except (rtc.ConnectError, rtc.participant.PublishTrackError) as error:
            raise PublishFailed(
                f"the agent could not publish to room {self._options.room!r} at {self._options.url}: {error}; "
                "check LIVEKIT_URL, the key and secret, and that UDP reaches the server",
                value=self._options.url,
            ) from error
        self.state.connected = True
        self._count_viewers()
        self._stats = asyncio.create_task(self._poll_stats(), name="livekit-stats")

    async def push_audio(self, block: Pcm) -> None:
        """Hands a block to the SDK and takes its back-pressure as the truth about the queue."""
        if self._audio is None:
            return
        self.playout.hand(len(block))
        frame = rtc.AudioFrame(block.tobytes(), ROOM_RATE, 1, len(block))
        handed, begun = self.playout.handed, self._clock.now()
        try:
            await self._audio.capture_frame(frame)
        except Exception as error:  # noqa: BLE001 - the SDK raises bare Exceptions: a lost block is counted, speech goes on
            self.state.error = f"audio block refused by the SDK: {error}"
            log.warning("audio block refused", extra={"room": self._options.room, "error": str(error)})
            return
        if self._clock.now() - begun > _GRACE_AFTER_STALL_S and self.playout.handed == handed:
            self.playout.observe(QUEUE_MS * ROOM_RATE // 1000)

    def push_video(self, frame: VideoFrame) -> None:
        """Copies the planes into the SDK (0.06 ms at 720p)."""
        if self._video is None:
            return
        planes = frame.i420
        if (
            not planes.flags.writeable
        ):  # the SDK takes the address of writable buffers only; it copies before it returns
            if self._scratch is None or len(self._scratch) != len(planes):
                self._scratch = np.empty(len(planes), np.uint8)
            np.copyto(self._scratch, planes)
            planes = self._scratch
        data = memoryview(planes)  # type: ignore[arg-type]  # arrays declare themselves buffers from Python 3.12 on
        self._video.capture_frame(rtc.VideoFrame(frame.width, frame.height, rtc.VideoBufferType.I420, data))
        self.state.published_frames += 1

    def clear_audio(self) -> int:
        """Silences the SDK's queue."""
        if self._audio is not None:
            self._audio.clear_queue()
        return self.playout.clear()

    async def set_state(self, state: str) -> None:
        """Sets the participant's attribute `avatar.state`. Best effort, bounded."""
        if not self.state.connected or self._closing:
            return
        try:
            async with asyncio.timeout(2.0):
                await self._room.local_participant.set_attributes({"avatar.state": state})
        except Exception as error:  # noqa: BLE001 - an attribute is a courtesy; the SDK raises bare Exceptions
            log.info("attribute not set", extra={"room": self._options.room, "error": str(error)})

    async def aclose(self) -> None:
        """Leaves. Waits at most 5 s for a connect in flight and as long for the goodbye."""
        if self._closing:
            return
        self._closing = True
        if self._stats is not None:
            self._stats.cancel()
            await asyncio.gather(self._stats, return_exceptions=True)
        if self._connecting is not None and not self._connecting.done():
            await asyncio.wait([self._connecting], timeout=CONNECT_TIMEOUT_S + 1)
        await self._bounded(self._room.disconnect())
        for source in (self._audio, self._video):
            if source is not None:
                await self._bounded(source.aclose())
        self._audio = self._video = self._scratch = None
        self.state.connected = False
        self.state.tracks = []

    async def _bounded(self, step: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await step
        except Exception as error:  # noqa: BLE001 - shutting down: report and go on with the next step
            log.warning("leaving was not clean", extra={"room": self._options.room, "error": repr(error)})

    async def _publish(self, first: VideoFrame) -> None:
        assert self._audio is not None and self._video is not None
        participant = self._room.local_participant
        bitrate = self._options.max_bitrate or _bitrate(first)
        video = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_CAMERA,
            stream=STREAM,
            simulcast=False,
            video_codec=rtc.VideoCodec.VP8,
            # headroom over fps: the encoder's rate control drops pictures that come faster than this
            video_encoding=rtc.VideoEncoding(max_bitrate=bitrate, max_framerate=self._options.fps + 5),
            degradation_preference=DegradationPreference.DEGRADATION_PREFERENCE_BALANCED,
        )
        audio = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_MICROPHONE,
            stream=STREAM,
            audio_encoding=AudioEncoding(max_bitrate=64_000),
            dtx=True,
            red=True,
        )
        # sound first: a viewer that sees a picture then always has the voice too
        audio_track = rtc.LocalAudioTrack.create_audio_track("avatar-audio", self._audio)
        self._publications.append(await participant.publish_track(audio_track, audio))
        video_track = rtc.LocalVideoTrack.create_video_track("avatar-video", self._video)
        self._publications.append(await participant.publish_track(video_track, video))
        self._describe_tracks()

    def _describe_tracks(self) -> None:
        kinds = {rtc.TrackKind.KIND_AUDIO: "audio", rtc.TrackKind.KIND_VIDEO: "video"}
        self.state.tracks = [
            TrackInfo(kind=kinds.get(p.kind, "unknown"), sid=p.sid, muted=p.muted) for p in self._publications
        ]

    def _listen(self) -> None:
        room = self._room
        room.on("participant_connected", lambda _: self._count_viewers())
        room.on("participant_disconnected", lambda _: self._count_viewers())
        room.on("local_track_subscribed", self._on_subscribed)
        room.on("local_track_republished", lambda *_: self._describe_tracks())
        room.on("reconnecting", self._on_reconnecting)
        room.on("reconnected", self._on_reconnected)
        room.on("disconnected", self._on_disconnected)

    def _on_subscribed(self, _: object) -> None:
        self.state.subscribed = True

    def _on_reconnecting(self) -> None:
        self.state.reconnecting = True

    def _on_reconnected(self) -> None:
        self.state.reconnecting = False
        self._describe_tracks()

    def _on_disconnected(self, reason: int) -> None:
        self.state.connected = False
        if not self._closing and self._lost is not None:
            name = rtc.DisconnectReason.Name(reason)  # type: ignore[arg-type]  # the SDK hands out the bare integer
            self.state.error = f"disconnected by the server: {name}"
            self._lost(name)

    def _count_viewers(self) -> None:
        standard = rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD
        people = [p for p in self._room.remote_participants.values() if p.kind == standard]
        self.state.viewers = len(people)
        if not people:
            self.state.subscribed = False

    async def _poll_stats(self) -> None:
        while True:
            await asyncio.sleep(_STATS_PERIOD_S)
            try:
                async with asyncio.timeout(_STATS_PERIOD_S * 2):
                    stats = await self._room.get_rtc_stats()
            except Exception as error:  # noqa: BLE001 - statistics are missing during a reconnect; the next poll comes
                log.debug("no statistics", extra={"room": self._options.room, "error": repr(error)})
                continue
            self._read_stats(stats.publisher_stats)

    def _read_stats(self, entries: list[Any]) -> None:
        """Frames the SFU acknowledges: those sent, less the share its receiver reports as lost."""
        sent, lost, answered = 0, 0.0, False
        for entry in entries:
            kind = entry.WhichOneof("stats")
            if kind == "outbound_rtp" and entry.outbound_rtp.stream.kind == "video":
                sent = entry.outbound_rtp.outbound.frames_sent
            elif kind == "remote_inbound_rtp" and entry.remote_inbound_rtp.stream.kind == "video":
                remote = entry.remote_inbound_rtp.remote_inbound
                answered = answered or remote.round_trip_time_measurements > 0
                lost = remote.fraction_lost
        acknowledged = int(sent * (1 - lost)) if answered else 0
        if acknowledged > self.state.acknowledged_frames:
            self.state.acknowledged_frames = acknowledged
            self.state.acknowledged_at = utc_now()
