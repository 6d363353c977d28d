"""The publisher of sessions with a room: sends the media over whichever transport works, and switches without losing a word.

`policy.FailoverPolicy` decides; this module carries its actions out. One playout clock is the session's master clock throughout.
Audio goes to one transport at a time, and waits (the clock stands) while none works; frames go to every transport that is open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from livekit import rtc

from musetalk_agent.agent_metrics import PUBLISHER_CHANGES, PUBLISHER_RUNG
from musetalk_agent.clock import Clock, utc_now
from musetalk_agent.errors import PublisherUnavailable, PublishFailed
from musetalk_agent.media.playout import PlayoutClock, PlayoutHistory, SwitchingClock
from musetalk_agent.media.segment import ROOM_RATE, Caption
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import PublisherMode, Transport
from musetalk_agent.protocol.messages import PublisherChanged
from musetalk_agent.publishers.base import Lost, MediaTap, PublisherState
from musetalk_agent.publishers.failover.policy import (
    SUSPECT_S,
    Action,
    AvailableTransports,
    Event,
    FailoverPolicy,
    TransportKind,
)
from musetalk_agent.publishers.failover.quality import QualityController
from musetalk_agent.publishers.failover.transports import HEALTHY_S, TransportManager, TransportOptions
from musetalk_agent.publishers.livekit.publisher import AUDIO_PATH_S, QUEUE_MS
from musetalk_agent.publishers.livekit.video_track import video_bitrate
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

_TICK_S = 0.2
_STREAM_DOUBT_S = 1.5
"""What a stream that breaks was given last is not known to be heard for so long."""
INGRESS_LATENCY_S = 2.5
"""So long after it is pushed to an ingress, audio is heard in the room: 1.0 s with Ingress 1.5, if frames are padded (3.7 s and
more where they are not). At the end of a push it throws away what it holds."""
_INGRESS_HEALTHY_S = 1.0
"""A probe is believed sooner, because leaving an ingress takes so long."""
_ROOM_LATENCY_S = 0.3
"""So long audio is on its way to a viewer's ears: a track that ends takes with it what waits in jitter buffers."""
_WHIP_LATENCY_S = 0.4
_SWALLOWED_S = 0.5
"""A reconnect of the SDK in which nothing came back for so long has swallowed what was said; in others only signalling moved."""
_LISTENER_WAIT_S = 1.0
"""In a room that was just joined the voice waits so long for a viewer to subscribe to it."""
_RETURN_S = 4.0
"""And so long where there were viewers before: after an SFU's restart viewers join again too, and need longer than the avatar."""


class FailoverPublisher:
    """See `Publisher` and `MovingPublisher`.

    Args:
        options: the room, and the other ways that there are.
        mode: which ways may be taken.
    """

    def __init__(self, options: TransportOptions, mode: PublisherMode, clock: Clock) -> None:
        self._options, self._clock = options, clock
        self.name = TransportKind.NONE.value
        self.state = PublisherState()
        self.tap: MediaTap | None = None
        mode = mode if options.joins else PublisherMode.RTMP
        self.transport = Transport(mode=mode, rung=TransportKind.NONE.value)
        self._playout = SwitchingClock(clock, ROOM_RATE, audio_delay_s=AUDIO_PATH_S)
        self.playout: PlayoutClock = self._playout
        self._playout.held = True
        self._rewind_media: Callable[[int], object] = self.playout.rewind
        self._changed: Callable[[PublisherChanged], None] = lambda _: None
        self._joined: Callable[[rtc.Room], None] = lambda _: None
        ways = AvailableTransports(
            rtmp=options.address is not None, ingress=options.ingress, beside=options.beside, whip=options.joins
        )
        self._policy = FailoverPolicy(ways, mode, clock.now())
        self._transports = TransportManager(
            options, clock, self.playout, self._step, self._tick, lambda room: self._joined(room)
        )
        self._heard = PlayoutHistory()
        self._rung = TransportKind.NONE
        self._flow = asyncio.Event()
        self._turn = 0
        self._settled = asyncio.Event()
        self._lost: Lost | None = None
        self._quality: QualityController | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._doubt_at: float | None = None  # when the SDK began to reconnect, and nothing came back any more
        self._watched = False  # there were listeners when the room was last well
        self._closing = False

    # --- the port ----------------------------------------------------------------------------------------------------

    async def open(
        self,
        first: VideoFrame,
        lost: Lost,
        rewind: Callable[[int], None] | None = None,
        changed: Callable[[PublisherChanged], None] | None = None,
        joined: Callable[[rtc.Room], None] | None = None,
    ) -> None:
        """Takes the first transport that works: the room, else RTMP after 6 s at the latest. See `MovingPublisher.open`."""
        self._rewind_media = rewind or self._rewind_media
        self._changed = changed or self._changed
        self._joined = joined or self._joined
        self._transports.show(first)
        self._quality = QualityController(video_bitrate(first), self._options.room.fps, self._clock.now())
        if self._options.beside:
            self._transports.open_stream()
        self._ticker = asyncio.create_task(supervise("failover-ticker", self._tick_on), name="failover-ticker")
        self._step(Event.START)
        await self._settled.wait()
        if self._rung is TransportKind.NONE:
            room = self._options.room
            raise self._transports.error or PublishFailed(
                f"the agent could not publish to room {room.room!r} at {room.url} ({self._policy.reason}); "
                "check LIVEKIT_URL, that UDP reaches the server, and rtmp_url where there is one",
                value=room.url,
            )
        self._lost = lost
        self._report()

    async def push_audio(self, block: Pcm) -> None:
        """Hands a block to the way in use, as fast as it takes it; waits while there is none."""
        turn = self._turn
        while not self._flow.is_set():
            await self._flow.wait()
        if turn != self._turn:
            return
        begins = self.playout.enqueued
        self.playout.enqueue(len(block))
        at = self.playout.time_of(begins)
        room = self._transports.room
        for sink in self._transports.audio_sinks(self._rung):
            sink.offer_audio(at, block)
        if self.tap is not None:
            self.tap.offer_audio(at, block)
        if self._rung is TransportKind.LIVEKIT and room is not None:
            await room.capture(block)
        else:
            excess = self.playout.queued_s() - QUEUE_MS / 1000
            await self._clock.sleep_until(self._clock.now() + max(0.0, excess))

    def push_video(self, frame: VideoFrame, due: float | None = None) -> None:
        """Shows a frame on every way that is open."""
        self._transports.show(frame, due)
        self.state.watched = self.tap is not None or self._transports.watched
        if self.tap is not None:
            self.tap.offer_video(self._clock.now(), frame)
        if self._rung is not TransportKind.NONE:
            self.state.published_frames += 1

    def push_caption(self, caption: Caption) -> None:
        """Text for the room; other ways have no place for it."""
        if self._rung is TransportKind.LIVEKIT and self._transports.room is not None:
            self._transports.room.push_caption(caption)

    def clear_audio(self) -> int:
        """Silences every way: the one in use, and what waits in any stream."""
        self._turn += 1
        self._transports.clear_audio()
        if self.tap is not None:  # what has left the sink is still heard, and of a stream what was pushed ahead
            sinks = [] if self._rung is TransportKind.LIVEKIT else self._transports.audio_sinks(self._rung)
            heard_until = self._clock.now() + self.playout.audio_path_s
            self.tap.clear_audio(max([heard_until, *(sink.pushed_until for sink in sinks)]))
        if self._rung is TransportKind.LIVEKIT and self._transports.room is not None:
            return self._transports.room.clear_audio()
        return self.playout.clear()

    async def set_state(self, state: str) -> None:
        """Sets the state in the room, where there is one; best effort."""
        self._transports.attribute = state
        if self._transports.room is not None:
            await self._transports.room.set_state(state)

    def set_mode(self, mode: PublisherMode) -> None:
        """See `MovingPublisher.set_mode`."""
        if mode is PublisherMode.RTMP and self._options.address is None:
            text = "This session has no RTMP address to publish to; give rtmp_url at /session/start."
            raise PublisherUnavailable(text, field="mode", value=mode.value)
        if mode is not PublisherMode.RTMP and not self._options.joins:
            text = "This session was started without joining its room (connect_livekit false); start another one."
            raise PublisherUnavailable(text, field="mode", value=mode.value)
        self._policy.mode = self.transport.mode = mode
        self._step(Event.MODE)

    async def aclose(self) -> None:
        """Leaves every way, within 7 s. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._settled.set()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        try:
            await self._transports.aclose()
        finally:
            if self._quality is not None:
                self._quality.close()
            if self._rung is not TransportKind.NONE:
                PUBLISHER_RUNG.labels(self._rung.value).dec()
                self._rung = TransportKind.NONE
            self.state.connected = False
            self.state.tracks = []

    # --- what the policy decides -------------------------------------------------------------------------------------

    def _step(self, event: Event, reason: str = "") -> None:
        """Something happened."""
        if self._closing:
            return
        self._carry_out(self._policy.on(event, self._clock.now(), reason))

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if not self._transports.reads:
                self._tick()

    def _tick(self) -> None:
        """Time passed, and what the room says of itself is known anew."""
        if self._closing:
            return
        try:
            self._look()
        except Exception:  # a tick that breaks must not be the last one
            log.exception("the failover's tick broke", extra={"room": self._options.room.room})

    def _look(self) -> None:
        now = self._clock.now()
        self._heard.note(now, self.playout.position())
        room = self._transports.room
        silent_s = room.liveness.silent_s if room is not None else 0.0
        self._mind_reconnect()
        self._carry_out(self._policy.tick(now, silent_s, self._all_heard(now)))
        self._report()

    def _mind_reconnect(self) -> None:
        """What was said into a reconnect of the SDK's own is said again when it is through."""
        room = self._transports.room
        if room is None or self._rung is not TransportKind.LIVEKIT:
            self._doubt_at = None
        elif room.state.reconnecting:
            if self._doubt_at is None and room.liveness.silent_s > _SWALLOWED_S:
                self._doubt_at = room.liveness.heard_at
        elif self._doubt_at is not None:
            self._rewind_to(self._doubt_at)
            self._doubt_at = None

    def _all_heard(self, now: float) -> bool:
        latency_s = _WHIP_LATENCY_S if self._rung is TransportKind.WHIP else 0.0
        if self._rung is TransportKind.RTMP and self._options.ingress:
            latency_s = INGRESS_LATENCY_S
        return self.playout.empty and self._heard.at(now - latency_s) >= self.playout.enqueued

    def _carry_out(self, acts: list[Action]) -> None:
        for act in acts:
            match act:
                case Action.JOIN:
                    self._transports.join()
                case Action.LEAVE_ROOM:
                    self._transports.leave_room()
                case Action.OPEN_STREAM:
                    self._transports.open_stream()
                case Action.CLOSE_STREAM:
                    self._transports.close_stream()
                case Action.OPEN_WHIP:
                    self._transports.open_whip()
                case Action.CLOSE_WHIP:
                    self._transports.close_whip()
                case Action.REWIND:
                    self._rewind()
                case Action.GIVE_UP:
                    self._give_up()
        self._settle()

    def _rewind(self) -> None:
        """Everything that is not known to be heard is wanted again."""
        now, room = self._clock.now(), self._transports.room
        moment = now - _STREAM_DOUBT_S
        if self._rung is TransportKind.LIVEKIT:
            moment = room.liveness.heard_at if room is not None else self._transports.heard_at
            moment = min(moment, now - _ROOM_LATENCY_S)
        elif self._options.ingress and self._rung is TransportKind.RTMP:
            moment = now - INGRESS_LATENCY_S
        self._rewind_to(moment)

    def _rewind_to(self, moment: float) -> None:
        """Plays again what was handed over and heard after `moment`. A voice that is published elsewhere was heard all the same."""
        if not self._options.room.publishes_audio:
            return
        self._heard.note(self._clock.now(), self.playout.position())
        position = min(self._heard.at(moment), self.playout.enqueued)
        if position < self.playout.enqueued:
            log.info("unheard speech is played again", extra={"samples": self.playout.enqueued - position})
            self._turn += 1
            self._transports.clear_audio(moment)  # what waits in a stream comes again as well
            if self.tap is not None:
                self.tap.clear_audio(moment)
            self._rewind_media(position)

    def _give_up(self) -> None:
        self.state.error = self._policy.reason
        self._settled.set()
        if self._lost is not None:
            self._lost(self._policy.reason)

    def _settle(self) -> None:
        """Applies the policy's state."""
        rung = self._policy.rung
        if rung is not self._rung:
            self._change(rung)
        flows = rung is not TransportKind.NONE and not self._policy.holding and not self._waits_for_listener()
        self._playout.held = not flows
        if flows:
            self._flow.set()
        else:
            self._flow.clear()
        healthy_s = _INGRESS_HEALTHY_S if self._options.ingress else HEALTHY_S
        self._transports.probe_if(self._policy.probing, healthy_s if self._settled.is_set() else 0.0)

    def _waits_for_listener(self) -> bool:
        """Whether audio waits, because a person is in the room, or was, and does not hear the avatar yet."""
        room = self._transports.room
        if self._rung is not TransportKind.LIVEKIT or room is None or room.state.subscribed:
            return False
        wait_s = _RETURN_S if self._watched else _LISTENER_WAIT_S if room.state.viewers else 0.0
        return self._clock.now() - self._transports.joined_at < wait_s

    def _change(self, rung: TransportKind) -> None:
        begins = not self._settled.is_set()
        for labels, step in ((self._rung, -1), (rung, 1)):
            if labels is not TransportKind.NONE:
                PUBLISHER_RUNG.labels(labels.value).inc(step)
        self._rung, self.name = rung, rung.value
        self._playout.set_audio_delay(AUDIO_PATH_S if rung is TransportKind.LIVEKIT else 0.0)
        self.state.connected = rung is not TransportKind.NONE
        transport = self.transport
        transport.rung, transport.since, transport.reason = rung.value, utc_now(), self._policy.reason
        if rung is not TransportKind.NONE:
            self._settled.set()
        if not (begins and rung is TransportKind.LIVEKIT):
            transport.changes += 1
            PUBLISHER_CHANGES.labels(rung.value).inc()
            self._changed(PublisherChanged(publisher=rung.value, reason=self._policy.reason))

    def _report(self) -> None:
        """Brings `state` and `transport` up to date."""
        outlets, state, transport = self._transports, self.state, self.transport
        room = outlets.room
        if room is not None:
            state.reconnecting, state.subscribed = room.state.reconnecting, room.state.subscribed
            state.viewers, state.tracks = room.state.viewers, room.state.tracks
            if state.subscribed or self._clock.now() - outlets.joined_at >= _RETURN_S:
                self._watched = state.viewers > 0
        else:
            state.reconnecting, state.tracks = False, []
            if (
                self._rung is not TransportKind.NONE
            ):  # viewers of a stream are not known: the session goes on as if there were some
                state.viewers = max(1, state.viewers)
        acknowledged = outlets.frames_acknowledged()
        if acknowledged > state.acknowledged_frames:
            state.acknowledged_frames, state.acknowledged_at = acknowledged, time.time()
        stream = outlets.stream
        sinks = {TransportKind.LIVEKIT: room, TransportKind.RTMP: stream, TransportKind.WHIP: outlets.whip}
        if self._quality is not None and outlets.latest is not None and self._policy.silent_s < SUSPECT_S:
            self._quality.look(sinks.get(self._rung), outlets.latest, transport, self._clock.now())
        if self._options.beside:
            transport.beside = "live" if stream is not None and stream.state.connected else "retrying"
