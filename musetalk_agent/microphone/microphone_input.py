"""Speech from a participant's microphone in the session's room: subscribes to the track and passes its audio on as it arrives.

What the room holds is looked at whenever something happens there, and twice a second: so it does not matter in which order a
participant joins, publishes, mutes, publishes again and leaves. `LiveBuffer` holds the delay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Literal, get_args

import numpy as np
from livekit import rtc

from musetalk_agent.agent_metrics import MICROPHONE_DELAY, MICROPHONE_SECONDS
from musetalk_agent.clock import Clock
from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import FEATURE_RATE, Pcm
from musetalk_agent.microphone.live_buffer import QUIET_RMS, LiveBuffer
from musetalk_agent.protocol.http import Microphone, MicrophoneState
from musetalk_agent.protocol.messages import Event, PlaybackFinished
from musetalk_agent.protocol.sdk_errors import SdkError, clean_up, sdk_errors
from musetalk_agent.resample import HALF_WIDTH
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

_FRAME_MS = 10
_QUEUE_FRAMES = 200
"""Two seconds: what the event loop could not take meanwhile. The oldest go."""
_LOOK_S = 0.5
MISSED_S = 10.0
"""A microphone that has been missing for so long is reported by a warning, once for each absence."""
_CLOSE_S = 2.0
_BEFORE = 2
"""Blocks before the one in which sound returns that are said with it: how a word begins may be as quiet as silence."""
_LEAD: Pcm = np.zeros(HALF_WIDTH * ROOM_RATE // FEATURE_RATE, np.int16)
"""A millisecond of silence before the first block, as the resampler withholds as much from the features: so a frame is made after
the block with which its audio is complete, and not after the next one.
"""
_Event = Literal[
    "participant_connected",
    "participant_disconnected",
    "track_published",
    "track_unpublished",
    "track_subscribed",
    "track_unsubscribed",
    "track_muted",
    "track_unmuted",
    "reconnected",
]
_EVENTS: tuple[_Event, ...] = get_args(_Event)


class MicrophoneInput:
    """Feeds a session's pipeline from a microphone. `on_room_joined` belongs to each room that the session joins.

    `run` belongs to the session's tasks.

    Args:
        pipeline: where the speech goes.
        participant: its identity; tracks of others, and its other tracks, are not subscribed.
    """

    def __init__(self, pipeline: Pipeline, participant: str, clock: Clock) -> None:
        self.participant = participant
        self.last_audio_at: float | None = None  # `time.time()`
        self.segments = 0
        self._clock = clock
        self._buffer = LiveBuffer()
        self._counted = 0, 0, 0
        self._room: rtc.Room | None = None
        self._pipeline = pipeline
        self._wake = asyncio.Event()
        self._track: rtc.Track | None = None
        self._reading: asyncio.Task[None] | None = None
        self._open = False  # a segment takes what comes
        self._before: deque[Pcm] = deque(maxlen=_BEFORE)  # the silence before a sound
        self._came = False  # something came of this track
        self._missed_since: float | None = None
        self._warned = False

    # --- what the session asks

    @property
    def present(self) -> bool:
        """The participant is in the room; the last known while the room is being joined again."""
        return self._room is None or self.participant in self._room.remote_participants

    def on_room_joined(self, room: rtc.Room) -> None:
        """Listens in a room that was just joined, instead of the one before."""
        self._room = room
        for name in _EVENTS:
            room.on(name, lambda *_: self._wake.set())
        room.on("disconnected", lambda _: self._leave(room))
        self._wake.set()

    def on_playback_event(self, event: Event) -> None:
        """A playback event of the pipeline: what comes after a clear is said in a new segment."""
        if isinstance(event, PlaybackFinished) and event.segment == self.segments:
            self._open = False

    def status(self) -> Microphone:
        """What `GET /session/{id}` reports."""
        buffer, state = self._buffer, self._state()
        live = state is MicrophoneState.LIVE
        return Microphone(
            participant=self.participant,
            state=state,
            message=self._message(state),
            delay_ms=round(1000 * self._pipeline.player.buffered_s) if live else None,
            left_out_ms=_ms(buffer.left_out),
            stretched_ms=_ms(buffer.stretched),
            late_ms=_ms(buffer.late),
        )

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            await supervise("microphone", self._follow)
        finally:
            await self._stop_reading()

    # --- the room

    def _leave(self, room: rtc.Room) -> None:
        if room is self._room:
            self._room = None
            self._wake.set()

    def _publications(self) -> list[rtc.RemoteTrackPublication]:
        """The participant's microphones, first the one to be read: the newest that is not muted, or the one that is read."""
        room = self._room
        who = room.remote_participants.get(self.participant) if room is not None else None
        if who is None:
            return []
        found = [
            publication
            for publication in who.track_publications.values()
            if publication.source == rtc.TrackSource.SOURCE_MICROPHONE and publication.kind == rtc.TrackKind.KIND_AUDIO
        ]
        found.reverse()
        return sorted(found, key=lambda p: (p.muted, p.track is None or p.track is not self._track))

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            try:
                with sdk_errors():
                    await self._look()
            except (SdkError, TimeoutError) as error:  # the room is changing; it is looked at again
                log.info("the microphone's room could not be read", extra={"error": repr(error)})
            self._report()
            await self._clock.wait(self._wake, self._clock.now() + _LOOK_S)

    async def _look(self) -> None:
        """Brings subscription and reading into line with what the room holds."""
        found = self._publications()
        for publication in found[1:]:
            if publication.subscribed:
                publication.set_subscribed(False)
        if found and not found[0].subscribed:
            found[0].set_subscribed(True)
        track = found[0].track if found and found[0].subscribed else None
        ended = self._reading is not None and self._reading.done()
        if track is not self._track or ended:
            await self._stop_reading()
            self._track = track
            if track is not None:
                self._reading = asyncio.create_task(self._read(track), name="microphone-track")

    async def _stop_reading(self) -> None:
        reading, self._reading, self._track, self._came = self._reading, None, None, False
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self._end()

    async def _read(self, track: rtc.Track) -> None:
        """Plays a track's audio until it is cancelled: a track that is gone sends nothing, and does not end by itself."""
        stream: rtc.AudioStream | None = None
        try:
            with sdk_errors():
                stream = rtc.AudioStream(
                    track, capacity=_QUEUE_FRAMES, sample_rate=ROOM_RATE, num_channels=1, frame_size_ms=_FRAME_MS
                )
                self._buffer.begin()
                async for event in stream:
                    self.push(np.frombuffer(event.frame.data, np.int16).copy())
        except (SdkError, TimeoutError):  # one track that breaks must not end the session; it is read anew
            log.exception("a microphone's track broke", extra={"participant": self.participant})
        finally:
            if stream is not None:
                await clean_up(stream.aclose(), _CLOSE_S, log)

    # --- the audio

    def push(self, block: Pcm) -> None:
        """Ten milliseconds of the microphone, int16 `[n]` at 48 kHz."""
        pipeline = self._pipeline
        self._came = True
        self._buffer.listen(block)
        if self._buffer.asleep:
            self._end()
            self._before.append(block)
            return
        player = pipeline.player
        waiting_s, target_s = player.buffered_s, player.live_delay_s
        if self._buffer.overdue(waiting_s, target_s):
            log.warning("what waits is too old to be said", extra={"seconds": round(waiting_s, 3)})
            self._count("late", round(waiting_s * ROOM_RATE))
            pipeline.clear()
            waiting_s = 0.0
        if not self._open:
            self.segments += 1
            self._open = True
            pipeline.begin(self.segments, ROOM_RATE, microphone=True)
            pipeline.push(np.concatenate([_LEAD, *self._before]))
            self._before.clear()
            self._buffer.begin()
        said = self._buffer.pass_on(block, waiting_s, target_s, flows=player.flows)
        if float(np.abs(block.astype(np.int32)).max(initial=0)) > QUIET_RMS:
            self.last_audio_at = time.time()
        pipeline.push(said)

    def _end(self) -> None:
        """What came is said to its end."""
        if self._open:
            self._open = False
            self._pipeline.end()

    # --- what is reported

    def _state(self) -> MicrophoneState:
        if self._room is None:
            return MicrophoneState.UNREACHABLE
        if not self.present:
            return MicrophoneState.WAITING
        found = self._publications()
        if not found:
            return MicrophoneState.UNPUBLISHED
        if found[0].muted:
            return MicrophoneState.MUTED
        return MicrophoneState.LIVE if self._came else MicrophoneState.CONNECTING

    def _message(self, state: MicrophoneState) -> str:
        who = repr(self.participant)
        match state:
            case MicrophoneState.UNREACHABLE:
                return f"The agent is not in the room by WebRTC, so it does not hear {who}."
            case MicrophoneState.WAITING:
                return f"Waiting for {who}: no participant of this identity is in the room."
            case MicrophoneState.UNPUBLISHED:
                return f"Waiting for {who}: it is in the room and publishes no microphone."
            case MicrophoneState.CONNECTING:
                return f"Waiting for {who}: its microphone is subscribed, and nothing has come of it yet."
            case MicrophoneState.MUTED:
                return f"The microphone of {who} is muted."
            case MicrophoneState.LIVE:
                return f"The avatar says what the microphone of {who} says."

    def _report(self) -> None:
        """Counts, and warns once of a microphone that does not come."""
        buffer = self._buffer
        now_counted = buffer.left_out, buffer.stretched, buffer.late
        for kind, counted, before in zip(("left_out", "stretched", "late"), now_counted, self._counted, strict=True):
            MICROPHONE_SECONDS.labels(kind).inc((counted - before) / ROOM_RATE)
        self._counted = now_counted
        state, now = self._state(), self._clock.now()
        if state is MicrophoneState.LIVE and self._pipeline.player.flows:
            MICROPHONE_DELAY.observe(self._pipeline.player.buffered_s)
        if state in (MicrophoneState.LIVE, MicrophoneState.MUTED):
            self._missed_since, self._warned = None, False
            return
        if self._missed_since is None:
            self._missed_since = now
        if not self._warned and now - self._missed_since >= MISSED_S:
            self._warned = True
            self._pipeline.warn("microphone_missing", self._message(state))

    def _count(self, kind: str, samples: int) -> None:
        MICROPHONE_SECONDS.labels(kind).inc(samples / ROOM_RATE)


def _ms(samples: int) -> int:
    return round(1000 * samples / ROOM_RATE)
