"""Publishes one voice at 48 kHz into a LiveKit room, as a participant of its own (a *line*).

What the SDK demands (docs/explanation/livekit.md): connect is never cancelled, one capture at a time, blocks of whole 10 ms,
nothing is published again by us after a reconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import numpy as np
from livekit import rtc
from livekit.rtc._proto.room_pb2 import AudioEncoding

from musetalk_agent.protocol.logs import redact
from musetalk_agent.protocol.sdk_errors import SdkError, clean_up, sdk_errors
from orchestrator.voice.worker.playout_scheduler import BLOCK, STEP, Block, PlayoutScheduler
from orchestrator.voice.worker.room_audio import QUEUE_MS, ROOM_RATE, Playout
from orchestrator.voice.worker_messages import Handoff, HandoffDone, JoinRoom, LineReport

log = logging.getLogger(__name__)

STREAM = "avatar"
"""The media stream that the avatar's video is in too: browsers keep the tracks of one stream in sync."""
TRACK = "avatar-voice"
REPORT_S = 0.1
CONNECT_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 10.0
"""When a server accepts the join and never acknowledges the track, the line disconnects and joins again."""
CAPTURE_TIMEOUT_S = 2.0
"""The SDK takes a block within 40 ms; a block that is never acknowledged is dropped, or the voice would stop for ever."""
SUBSCRIBED_S = 0.6
"""Audio before the first listener has subscribed is lost; a line waits no longer than this for one (s)."""
_BACKOFF_S = (0.3, 5.0)
_CLOSE_TIMEOUT_S = 2.0
_LOW_S = 0.05  # with less in the SDK's buffer every 10 ms are handed over as they come
_WAITED_S = 0.002  # a capture that took longer than this has waited for the queue to drain
_SILENT_DBFS = -96.0


class RoomPublisher:
    """Keeps one room joined until it is left; `run()` must be running.

    The SDK reconnects by itself; when it gives up, the line joins again.
    """

    def __init__(self, join: JoinRoom, report: Callable[[LineReport], None]) -> None:
        self._join = join
        self._report = report
        self._on_air = join.on_air
        self._wanted = asyncio.Event()  # something has changed: the air, what there is to say, the room
        self._room: rtc.Room | None = None
        self._source: rtc.AudioSource | None = None
        self._publication: rtc.LocalTrackPublication | None = None
        self._lost: str | None = None
        self._leaving = False
        self._level: float | None = None
        self._spoken = False
        self._ends: list[tuple[int, int]] = []
        self.state = "joining"
        self.error: str | None = None
        self.score = PlayoutScheduler()
        self.playout = Playout(time.monotonic())

    # --- what the core says

    def air(self, on: bool) -> None:
        """Publishes the track or takes it back; what was to be said goes with it."""
        if on != self._on_air:
            self._on_air = on
            self._renew()

    def changed(self) -> None:
        """The score has changed."""
        self._wanted.set()

    def clear(self) -> None:
        """Silence: at most what WebRTC has under way, 20 ms, is still heard."""
        self.score.clear()
        if self._source is not None:
            self._source.clear_queue()
        self.playout.clear(time.monotonic())
        self._ends.clear()

    def cut(self, asked: Handoff) -> HandoffDone:
        """Chooses where to stop; see `PlayoutScheduler.cut`."""
        now = time.monotonic()
        stop = self.score.cut(asked.after_s, asked.within_s, self.playout.next_at(now), spoken=self._spoken)
        self._wanted.set()
        if stop is None:
            return HandoffDone(line=asked.line, call=asked.call, segment=0, heard_s=0.0, at=now, whole=False)
        heard_s = stop.position / ROOM_RATE
        return HandoffDone(
            line=asked.line, call=asked.call, segment=stop.segment, heard_s=heard_s, at=stop.at, whole=stop.whole
        )

    def leave(self) -> None:
        """Ends `run()`, in bounded time."""
        self._leaving = True
        self._wanted.set()

    # --- life

    async def run(self) -> None:
        """Joins, speaks, and leaves on `leave`, which ends it. Must not be cancelled."""
        reporter = asyncio.create_task(self._reporting(), name=f"voice-report-{self._join.line}")
        delay = _BACKOFF_S[0]
        try:
            while not self._leaving:
                try:
                    if await self._connect():
                        delay = _BACKOFF_S[0]
                        await self._stay()
                finally:
                    await self._disconnect()
                if not self._leaving:
                    self.state = "reconnecting"
                    self.report()
                    await self._pause(delay)
                    delay = min(_BACKOFF_S[1], 2 * delay)
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)
            self.state = "left"
            self.report()

    async def _connect(self) -> bool:
        self._lost = None
        self._room = room = rtc.Room()
        room.on("disconnected", self._on_disconnected)
        room.on("reconnecting", lambda: self._move("reconnecting"))
        room.on("reconnected", lambda: self._move("live" if self._publication else "joined"))
        options = rtc.RoomOptions(auto_subscribe=False, dynacast=False, connect_timeout=CONNECT_TIMEOUT_S)
        try:
            with sdk_errors():
                # never cancelled: a connect that is dropped half-way ends in a panic of the native library (rust-sdks#1340)
                await room.connect(self._join.url, self._join.token, options)
        except SdkError as error:  # the line joins again
            self.error = f"could not join: {redact(str(error))}"
            return False
        self.error = None
        self._move("joined")
        return True

    async def _stay(self) -> None:
        """On the air or not, until the room is lost or left."""
        while not self._leaving and self._lost is None:
            if self._on_air:
                await self._speak()
            self._wanted.clear()
            if not (self._leaving or self._lost or self._on_air):
                await self._wanted.wait()

    async def _speak(self) -> None:
        assert self._room is not None
        self._source = source = rtc.AudioSource(ROOM_RATE, 1, queue_size_ms=QUEUE_MS)
        self.playout = Playout(time.monotonic())
        options = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_MICROPHONE,
            stream=STREAM,
            audio_encoding=AudioEncoding(max_bitrate=64_000),
            dtx=True,
            red=True,
        )
        track = rtc.LocalAudioTrack.create_audio_track(TRACK, source)
        try:
            with sdk_errors():
                async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                    self._publication = await self._room.local_participant.publish_track(track, options)
                self._move("live")
                await self._wait_subscribed(self._publication)
                score = self.score
                while self._on_air and score is self.score and not self._leaving and self._lost is None:
                    await self._pump(source)
        except (SdkError, TimeoutError) as error:  # the line joins again
            reason = "the server does not answer in time" if isinstance(error, TimeoutError) else redact(str(error))
            self._lost = self.error = f"could not publish: {reason}"
        finally:
            await self._unpublish(source)

    async def _wait_subscribed(self, publication: rtc.LocalTrackPublication) -> None:
        """Returns once a listener has subscribed, or when there is none."""
        assert self._room is not None
        standard = rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD
        if any(who.kind == standard for who in self._room.remote_participants.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SUBSCRIBED_S):
                    await publication.wait_for_subscription()

    async def _pump(self, source: rtc.AudioSource) -> None:
        """Hands over one block, or waits until there may be one."""
        now = time.monotonic()
        self._wanted.clear()
        queued_s = self.playout.queued_s(now)
        least = STEP if queued_s < _LOW_S else BLOCK // 2
        block = self.score.next(self.playout.next_at(now), dry=self.playout.dry(now), least=least)
        self._note_ends()
        if block is None:
            wake_at = self.score.wake_at
            if wake_at is not None:
                await self._pause(wake_at - self.playout.next_at(now))
            else:
                await self._pause(queued_s - _LOW_S if queued_s > _LOW_S else queued_s or None)
            return
        await self._hand(source, block, now)

    async def _hand(self, source: rtc.AudioSource, block: Block, now: float) -> None:
        self.playout.hand(now, block.spans)
        self._note_ends()
        self._spoken = self._spoken or any(span.position is not None for span in block.spans)
        self._level = _dbfs(block)
        handed = self.playout.handed
        try:
            with sdk_errors():
                async with asyncio.timeout(CAPTURE_TIMEOUT_S):
                    await source.capture_frame(
                        rtc.AudioFrame(block.samples.tobytes(), ROOM_RATE, 1, len(block.samples))
                    )
        except (SdkError, TimeoutError) as error:  # one block is lost, speech goes on
            self.error = f"audio block refused by the SDK: {error!r}"
            log.warning("audio block refused", extra={"line": self._join.line, "error": repr(error)})
            return
        after = time.monotonic()
        if after - now > _WAITED_S and self.playout.handed == handed:
            self.playout.full(after)

    # --- leaving

    async def _unpublish(self, source: rtc.AudioSource) -> None:
        self._source = None
        publication, self._publication = self._publication, None
        if publication is not None and self._room is not None and self._lost is None:
            await clean_up(self._room.local_participant.unpublish_track(publication.sid), _CLOSE_TIMEOUT_S, log)
            self._move("joined")
        await clean_up(source.aclose(), _CLOSE_TIMEOUT_S, log)

    async def _disconnect(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            await clean_up(room.disconnect(), _CLOSE_TIMEOUT_S, log)

    def _on_disconnected(self, reason: int) -> None:
        self._lost = rtc.DisconnectReason.Name(reason)  # type: ignore[arg-type]  # the SDK hands out the bare integer
        if not self._leaving:
            self.error = f"disconnected by the server: {self._lost}"
        self._wanted.set()

    # --- reports

    def report(self) -> None:
        """One report."""
        now = time.monotonic()
        playout = self.playout
        playout.advance(now)
        finished = [number for number, end in self._ends if end <= playout.passed]
        self._ends = [(number, end) for number, end in self._ends if end > playout.passed]
        publication = self._publication
        self._report(
            LineReport(
                line=self._join.line,
                state=self.state,
                at=now,
                segment=playout.segment,
                heard_s=playout.heard / ROOM_RATE,
                handed_s=playout.goes_on_to() / ROOM_RATE,
                next_segment=self.score.segment,
                next_s=self.score.position / ROOM_RATE,
                finished=finished,
                stopped=self.score.stopped and playout.passed >= playout.handed,
                room=self._room.name if self._room is not None and self._room.isconnected() else None,
                sid=publication.sid if publication is not None else None,
                level_dbfs=None if playout.dry(now) else self._level,
                buffer_s=round(self.score.buffer_s + playout.queued_s(now), 3),
                corrections=self.score.corrections,
                error=self.error,
            )
        )

    async def _reporting(self) -> None:
        while True:
            self.report()
            await asyncio.sleep(REPORT_S)

    def _note_ends(self) -> None:
        self._ends += [(number, self.playout.handed) for number in self.score.handed_out]
        self.score.handed_out.clear()

    def _move(self, state: str) -> None:
        self.state = state
        self.report()

    def _renew(self) -> None:
        self.score, self.playout = PlayoutScheduler(), Playout(time.monotonic())
        self._ends.clear()
        self._spoken = False
        self._wanted.set()

    async def _pause(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if seconds is None else max(0.001, seconds)):
                await self._wanted.wait()


def _dbfs(block: Block) -> float:
    rms = float(np.sqrt(np.mean(np.square(block.samples.astype(np.float32)))))
    return round(max(_SILENT_DBFS, 20 * float(np.log10(max(rms, 1e-3) / 32768))), 1)
