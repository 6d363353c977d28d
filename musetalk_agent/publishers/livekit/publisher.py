"""Publishes to a LiveKit room: one audio and one video track in one sync group, paced by us and never by wall clock.

docs/explanation/livekit.md lists the traps this avoids, with their sources: connect is never cancelled, nothing is published
twice after a reconnect, a real frame is there before the track is, audio is 48 kHz in whole 10 ms with one capture at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from livekit import rtc
from livekit.rtc._proto.room_pb2 import AudioEncoding

from musetalk_agent.clock import Clock
from musetalk_agent.errors import PublishFailed
from musetalk_agent.media.playout import PlayoutClock
from musetalk_agent.media.segment import ROOM_RATE, Caption
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import TrackInfo, VideoCodec
from musetalk_agent.protocol.sdk_errors import SdkError, clean_up, sdk_errors, without_tokens
from musetalk_agent.publishers.base import Lost, PublisherState
from musetalk_agent.publishers.livekit.detached_connect import abandon, leave
from musetalk_agent.publishers.livekit.event_filter import own_events_only
from musetalk_agent.publishers.livekit.stats import Liveness, TransportStats, keep_answers_coming, read
from musetalk_agent.publishers.livekit.transcription import CaptionWriter
from musetalk_agent.publishers.livekit.video_track import LiveKitVideoSource, VideoEncoding
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

QUEUE_MS = 60
"""Audio that waits in the SDK; with one block of 40 ms on top the most is 100 ms, which is the tail a barge-in would leave."""
AUDIO_PATH_S = 0.035
"""Audio reaches a viewer this much later than a frame that leaves at the same moment: an Opus packet goes out when its 20 ms are
complete, and the jitter buffers differ. Measured at a viewer on loopback; receivers leave differences under 30 ms uncorrected."""
CONNECT_TIMEOUT_S = 5.0
_CONNECT_MOST_S = 75.0
"""No join is waited for longer: through blocked UDP it fails by itself after a minute."""
_PUBLISH_TIMEOUT_S = 10.0
"""For both tracks. A server that took the join and acknowledges no track would hold the session up for ever."""
_CAPTURE_TIMEOUT_S = 2.0
"""The SDK takes a block within 40 ms; one that it never answers for is given up, or the voice would stand still for ever."""
_CLOSE_TIMEOUT_S = 5.0
_JOIN_GRACE_S = 1.0  # the end waits so long for a join under way
_STATS_PERIOD_S = 0.2
_STATS_TIMEOUT_S = 0.5
_GRACE_AFTER_STALL_S = 0.002  # a capture that took longer than this has waited for the queue to drain
STREAM = "avatar"


@dataclass(frozen=True, slots=True)
class LiveKitOptions:
    """How to join and what to publish.

    Without `publishes_audio` only video is published: the voice comes from elsewhere.
    """

    url: str
    token: str = field(repr=False)
    room: str
    fps: int
    publishes_audio: bool = True
    video: VideoEncoding = field(default_factory=VideoEncoding)


class LiveKitPublisher:
    """A participant of kind agent that only publishes: one connection to a room.

    Args:
        playout: the session's clock, where another owns it.
        on_reading: called about five times a second once it is open, after `liveness` and `reading` were brought up to date.
        on_joined: called with the room once it is joined, before anything is published.
    """

    name = "livekit"

    def __init__(
        self,
        options: LiveKitOptions,
        clock: Clock,
        playout: PlayoutClock | None = None,
        on_reading: Callable[[], None] | None = None,
        on_joined: Callable[[rtc.Room], None] | None = None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._on_reading, self._on_joined = on_reading, on_joined
        self.state = PublisherState()
        self.playout = playout or PlayoutClock(clock, ROOM_RATE, audio_delay_s=AUDIO_PATH_S)
        self.liveness = Liveness(clock.now())
        self.reading = TransportStats()
        self.token = options.token
        self._room = rtc.Room()
        self._audio: rtc.AudioSource | None = None
        self._camera: LiveKitVideoSource | None = None
        self._publications: list[rtc.LocalTrackPublication] = []
        self._lost: Lost | None = None
        self._closing = False
        self._pauses = False  # the server has let the encoder rest since it connected: it encodes for a subscriber only
        self._captions = CaptionWriter(self._room, self._audio_sid)
        self._tasks: list[asyncio.Task[None]] = []
        self._connecting: asyncio.Task[None] | None = None

    async def open(self, first: VideoFrame, lost: Lost) -> None:
        """Joins and publishes; see `Publisher.open`. The room's tracks are acknowledged by the server when this returns."""
        self._lost = lost
        self._listen()
        if self._options.publishes_audio:
            self._audio = rtc.AudioSource(ROOM_RATE, 1, queue_size_ms=QUEUE_MS)
        self._camera = LiveKitVideoSource(first)
        options = rtc.RoomOptions(auto_subscribe=False, dynacast=True, connect_timeout=CONNECT_TIMEOUT_S)
        self._connecting = asyncio.create_task(
            self._room.connect(self._options.url, self._options.token, options), name="livekit-connect"
        )
        try:
            with sdk_errors():
                # never cancelled: a connect that is dropped half-way ends in a panic of the native library (rust-sdks#1340)
                async with asyncio.timeout(_CONNECT_MOST_S):
                    await asyncio.shield(self._connecting)
                own_events_only(self._room)
                if self._on_joined is not None:
                    self._on_joined(self._room)
                async with asyncio.timeout(_PUBLISH_TIMEOUT_S):
                    await self._publish(first)
        except (SdkError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            reason = "the server does not answer in time" if late else without_tokens(str(error))
            raise PublishFailed(
                f"the agent could not publish to room {self._options.room!r} at {self._options.url}: {reason}; "
                "check LIVEKIT_URL, the key and secret, and that UDP reaches the server",
                value=self._options.url,
            ) from error
        self.state.connected = True
        self.liveness = Liveness(self._clock.now())
        self._count_viewers()
        jobs = {"livekit-stats": self._poll_stats, "livekit-heartbeat": self._keep_answers_coming}
        self._tasks = [asyncio.create_task(supervise(name, job), name=name) for name, job in jobs.items()]

    async def push_audio(self, block: Pcm) -> None:
        """Hands a block to the SDK and takes its back-pressure as the truth about the queue."""
        self.playout.enqueue(len(block))
        await self.capture(block)

    async def capture(self, block: Pcm) -> None:
        """Takes a block that was counted as handed over already."""
        if self._audio is None:
            excess = self.playout.queued_s() - QUEUE_MS / 1000
            await self._clock.sleep_until(self._clock.now() + max(0.0, excess))
            return
        frame = rtc.AudioFrame(block.tobytes(), ROOM_RATE, 1, len(block))
        handed, begun = self.playout.enqueued, self._clock.now()
        try:
            with sdk_errors():
                async with asyncio.timeout(_CAPTURE_TIMEOUT_S):
                    await self._audio.capture_frame(frame)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._note_refused(error)  # a future of the SDK's was cancelled, and not this task
            return
        except (SdkError, TimeoutError) as error:  # a lost block is counted, speech goes on
            self._note_refused(error)
            return
        if self._clock.now() - begun > _GRACE_AFTER_STALL_S and self.playout.enqueued == handed:
            self.playout.observe(QUEUE_MS * ROOM_RATE // 1000)

    def _note_refused(self, error: BaseException) -> None:
        self.state.error = f"audio block refused by the SDK: {error!r}"
        log.warning("audio block refused", extra={"room": self._options.room, "error": repr(error)})

    def push_video(self, frame: VideoFrame, due: float | None = None) -> None:
        """Copies the planes into the SDK (0.06 ms at 720p)."""
        if self._camera is not None and self._camera.push(frame, due, watched=self.state.watched):
            self.state.published_frames += 1

    def push_caption(self, caption: Caption) -> None:
        """Text for those who watch."""
        if self.state.connected and not self._closing:
            self._captions.push(caption)

    def set_quality(self, *, scale: float, fps_divisor: int) -> None:
        """Frames are made smaller by `scale`, and only every `fps_divisor`-th is published, from now on."""
        if self._camera is not None:
            self._camera.scale, self._camera.fps_divisor = scale, fps_divisor

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
            with sdk_errors():
                async with asyncio.timeout(2.0):
                    await self._room.local_participant.set_attributes({"avatar.state": state})
        except (SdkError, TimeoutError) as error:
            log.info("attribute not set", extra={"room": self._options.room, "error": str(error)})

    async def aclose(self) -> None:
        """Leaves. Waits at most 1 s for a join under way and 5 s for the leave.

        A join that takes longer cannot be called off; its room is left when it ends, in a minute or so.
        """
        if self._closing:
            return
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connecting is not None and not self._connecting.done():
            await asyncio.wait([self._connecting], timeout=_JOIN_GRACE_S)
            if not self._connecting.done():
                abandon(self._room, self._connecting)
        await self._bounded(self._captions.aclose())
        await self._bounded(leave(self._room))
        for source in (self._audio, self._camera):
            if source is not None:
                await self._bounded(source.aclose())
        self._audio = self._camera = None
        self.state.connected = False
        self.state.tracks = []

    async def _bounded(self, step: Coroutine[Any, Any, None]) -> None:
        await clean_up(step, _CLOSE_TIMEOUT_S, log, room=self._options.room)

    async def _publish(self, first: VideoFrame) -> None:
        assert self._camera is not None
        participant = self._room.local_participant
        video = self._options.video.publish_options(first, self._options.fps, STREAM)
        audio = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_MICROPHONE,
            stream=STREAM,
            audio_encoding=AudioEncoding(max_bitrate=64_000),
            dtx=False,  # silence is sent: a viewer's jitter buffer has settled before speech (docs/explanation/livekit.md)
            red=True,
        )
        tracks: list[tuple[rtc.LocalTrack, rtc.TrackPublishOptions]] = []
        if self._audio is not None:
            tracks.append((rtc.LocalAudioTrack.create_audio_track("avatar-audio", self._audio), audio))
        tracks.append((rtc.LocalVideoTrack.create_video_track("avatar-video", self._camera.source), video))
        # Both are under way at once, the audio's request first: a viewer then negotiates once for the two in half of the
        # starts, which is 0.1 s, and still has the audio when it sees the first frame (docs/reference/performance.md).
        if self._options.video.codec.chosen is VideoCodec.VP8:
            self._publications = await _all([participant.publish_track(*track) for track in tracks])
        else:
            # One after the other, the video first. The offer for a track that was published before may name the video's
            # transceiver ahead of its preferences, and then VP8 is agreed on (docs/explanation/livekit.md).
            self._publications = [await participant.publish_track(*track) for track in reversed(tracks)][::-1]
        self._describe_tracks()

    def _audio_sid(self) -> str | None:
        return next((track.sid for track in self.state.tracks if track.kind == "audio"), None)

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
        room.on("token_refreshed", self._on_token)

    def _on_token(self) -> None:
        self.token = self._room._token or self.token  # the SDK reports a new one, and keeps it here

    def _on_subscribed(self, track: rtc.Track) -> None:
        self.state.subscribed = True
        if track.kind == rtc.TrackKind.KIND_VIDEO:
            self.state.watched = True  # before the statistics say so

    def _on_reconnecting(self) -> None:
        self.state.reconnecting = True

    def _on_reconnected(self) -> None:
        self.state.reconnecting, self._pauses = False, False
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
            reading: TransportStats | None = None
            try:
                with sdk_errors():
                    async with asyncio.timeout(_STATS_TIMEOUT_S):
                        reading = read((await self._room.get_rtc_stats()).publisher_stats)
            except (SdkError, TimeoutError) as error:  # statistics are missing during a reconnect; the next poll comes
                log.debug("no statistics", extra={"room": self._options.room, "error": repr(error)})
            self.liveness.note(reading, self._clock.now(), time.time() * 1000)
            if reading is not None:
                self.reading = reading
                self.state.watched = reading.encodes
                self._pauses = self._pauses or not reading.encodes
                if self._pauses and reading.encodes and self.state.viewers:
                    self.state.subscribed = (
                        True  # the SDK's event comes once a track, and may come before a viewer's leave
                    )
                self._acknowledge(reading)
            if self._on_reading is not None:
                self._on_reading()

    async def _keep_answers_coming(self) -> None:
        await keep_answers_coming(self._room, lambda: not self.state.watched)

    def _acknowledge(self, reading: TransportStats) -> None:
        """Frames the SFU acknowledges: those sent, less the share its receiver reports as lost."""
        acknowledged = int(reading.frames_sent * (1 - reading.fraction_lost)) if reading.reports else 0
        if acknowledged > self.state.acknowledged_frames:
            self.state.acknowledged_frames = acknowledged
            self.state.acknowledged_at = time.time()


async def _all(publishing: list[Coroutine[Any, Any, rtc.LocalTrackPublication]]) -> list[rtc.LocalTrackPublication]:
    """Publishes tracks at once. When one fails, or this is cancelled, none of the others is left under way."""
    tasks = [asyncio.create_task(one) for one in publishing]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
