"""The way of an agent's speech to its avatar: livekit-agents' own, with pauses, and what is to be done while the avatar is away."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import DataStreamAudioOutput
from livekit.agents.voice.avatar._datastream_io import AUDIO_STREAM_TOPIC, RPC_CLEAR_BUFFER
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities

log = logging.getLogger("livekit.plugins.musetalk")

AWAY_S = 30.0
"""An avatar that does not come back within so long has lost the speech it had."""
BACK_S = 2.0
"""One that is back says within so long whether it still has it."""
RECALL_S = 2.0
"""An avatar says within so long how much of the speech was heard that is taken back from it; else the clock says it."""


@dataclass(eq=False)
class _Segment:
    """Speech that is not over. `pcm` is what was not heard for certain, from second `heard_s` on."""

    rate: int
    channels: int
    heard_s: float = 0.0
    pcm: bytearray = field(default_factory=bytearray)
    sent: bool = False
    whole: bool = False
    begun: bool = False
    playing_since: float | None = None
    read_s: float = 0.0

    def add(self, frame: rtc.AudioFrame) -> None:
        self.pcm += bytes(frame.data)

    def take_back(self, position_s: float) -> None:
        """Of the part that the avatar had, so many seconds were heard."""
        samples = min(round(position_s * self.rate), len(self.pcm) // (2 * self.channels))
        del self.pcm[: 2 * self.channels * samples]
        self.heard_s += samples / self.rate
        self.sent, self.playing_since = False, None

    @property
    def position_s(self) -> float:
        """Seconds heard so far, by the clock."""
        if self.playing_since is None:
            return self.heard_s
        return min(self.heard_s + time.monotonic() - self.playing_since, self.end_s)

    @property
    def end_s(self) -> float:
        """Seconds that came so far."""
        return self.heard_s + len(self.pcm) / (2 * self.channels * self.rate)

    def between(self, begin_s: float, end_s: float) -> np.ndarray[Any, np.dtype[np.int16]]:
        """Samples of its first channel, of a part that is still kept."""
        first, last = (round((at_s - self.heard_s) * self.rate) for at_s in (begin_s, end_s))
        kept = bytes(self.pcm[2 * self.channels * first : 2 * self.channels * last])
        return np.frombuffer(kept, np.int16)[:: self.channels]


class AvatarOutput(DataStreamAudioOutput):
    """`DataStreamAudioOutput` that can pause, and does not wait for an avatar that died.

    A pause takes the speech back that was not heard (`lk.clear_buffer`); to resume is to send it again, as another stream. To
    livekit-agents both are one segment, whose position counts from its first sample.

    An avatar that left and comes back calls `lk.playback_started` when it still has the speech that was sent to it: then all goes
    on. If it does not, it is a new one, and that speech counts as interrupted at the place where it was; at once when the agent is
    interrupted meanwhile. Speech that is still being made waits until this is known, and is spoken then.
    """

    def __init__(self, room: rtc.Room, *, destination_identity: str, sample_rate: int) -> None:
        super().__init__(
            room,
            destination_identity=destination_identity,
            sample_rate=sample_rate,
            wait_remote_track=rtc.TrackKind.KIND_VIDEO,
            wait_playback_start=True,
        )
        self._capabilities = AudioOutputCapabilities(pause=True)
        self._avatar = destination_identity
        self._doubt: tuple[int, float] | None = (
            None  # segments that an avatar had when it left, and seconds heard of the first
        )
        self._certain = asyncio.Event()
        self._certain.set()
        self._giving_up: asyncio.TimerHandle | None = None
        self._segments: list[_Segment] = []  # those that livekit-agents waits for, the first is being heard
        self._capturing = False
        self._paused = self._recalling = self._abandoned = False
        self._recalled = asyncio.Event()
        self._sending = asyncio.Lock()
        room.on("participant_disconnected", self._on_left)
        room.on("participant_connected", self._on_back)

    # --- what livekit-agents asks for

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await self._certain.wait()
        async with self._sending:
            if self._holding:
                await AudioOutput.capture_frame(self, frame)
                self._segment_of(frame).add(frame)
                return
            await super().capture_frame(frame)
            segment = self._segment_of(frame)
            segment.sent = True
            segment.add(frame)

    def flush(self) -> None:
        super().flush()
        if self._capturing:
            self._capturing, self._segments[-1].whole = False, True

    def pause(self) -> None:
        """What is heard stops; what was not heard waits here. Idempotent."""
        AudioOutput.pause(self)
        if not self._paused:
            self._paused = True
            self._spawn(self._take_back())

    def resume(self) -> None:
        """Goes on where it stopped. Idempotent."""
        AudioOutput.resume(self)
        if self._paused:
            self._paused = False
            self._spawn(self._go_on())

    def clear_buffer(self) -> None:
        self._give_up()
        if not self._holding and not self._recalling:
            super().clear_buffer()
        elif self._segments:
            self._abandoned = True
            self._spawn(self._abandon())

    def on_playback_started(self, *, created_at: float) -> None:
        """The avatar is heard: at the beginning of a segment, after a pause, and when it says that it still has what it had."""
        if self._doubt is not None:
            self._settle()
            return
        segment = self._segments[0] if self._segments else None
        if segment is not None:
            segment.playing_since = time.monotonic()
            if segment.begun:
                return
            segment.begun = True
        super().on_playback_started(created_at=created_at)

    def on_playback_finished(
        self, *, playback_position: float, interrupted: bool, synchronized_transcript: str | None = None
    ) -> None:
        """A segment is over. The position counts from where the avatar's part of it began."""
        if self._segments:
            segment = self._segments.pop(0)
            self._capturing = self._capturing and bool(self._segments)
            playback_position += segment.heard_s
            synchronized_transcript = self.said(playback_position, interrupted)
        super().on_playback_finished(
            playback_position=playback_position,
            interrupted=interrupted,
            synchronized_transcript=synchronized_transcript,
        )

    async def aclose(self) -> None:
        """Listens no more. Nothing waits for the avatar afterwards."""
        self._room.off("participant_disconnected", self._on_left)
        self._room.off("participant_connected", self._on_back)
        self._give_up()

    # --- for those that know the words

    @property
    def position_s(self) -> float | None:
        """Seconds heard of the segment that is being heard; None while none is, or while it is paused."""
        segment = self._segments[0] if self._segments else None
        return segment.position_s if segment is not None and segment.playing_since is not None else None

    @property
    def remaining_s(self) -> float | None:
        """Seconds of that segment still to be heard; None where that is not known, because more may come, or nothing is heard."""
        segment = self._segments[0] if self._segments else None
        if segment is None or not segment.whole or segment.playing_since is None:
            return None
        return segment.end_s - segment.position_s

    def played(self) -> Iterator[tuple[float, np.ndarray[Any, np.dtype[np.int16]], int]]:
        """What was heard since the last call: (time of its first sample on the monotonic clock, int16 samples, Hz)."""
        segment = self._segments[0] if self._segments else None
        if segment is None or segment.playing_since is None:
            return
        begin_s, end_s = max(segment.read_s, segment.heard_s), segment.position_s
        segment.read_s = end_s
        sound = segment.between(begin_s, end_s)
        if len(sound):
            yield segment.playing_since + begin_s - segment.heard_s, sound, segment.rate

    def said(self, position_s: float, interrupted: bool) -> str | None:
        """What was heard of the segment that is over; None: livekit-agents knows it."""
        return None

    # --- pauses

    @property
    def _holding(self) -> bool:
        """What comes waits here, and so does what comes after it."""
        return self._paused or any(not segment.sent for segment in self._segments)

    def _segment_of(self, frame: rtc.AudioFrame) -> _Segment:
        if not self._capturing:
            self._capturing = True
            self._segments.append(_Segment(frame.sample_rate, frame.num_channels))
        return self._segments[-1]

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("speech was lost on its way to the avatar", extra={"error": repr(error)})
            while self._segments:  # nothing waits for it for ever
                self.on_playback_finished(playback_position=0.0, interrupted=True)

    async def _take_back(self) -> None:
        async with self._sending:
            if not self._paused or not any(segment.sent for segment in self._segments):
                return
            writer, self._stream_writer = self._stream_writer, None
            self._recalled.clear()
            self._recalling = True
            try:
                async with asyncio.timeout(RECALL_S):
                    await self._room.local_participant.perform_rpc(
                        destination_identity=self._avatar, method=RPC_CLEAR_BUFFER, payload=""
                    )
                    if writer is not None:  # not before: the voice is to stop at once
                        await writer.aclose()
                    await self._recalled.wait()
            except (rtc.RpcError, TimeoutError) as error:
                log.warning("the avatar did not say where it stopped", extra={"error": repr(error)})
                for segment in self._segments:
                    segment.take_back(segment.position_s - segment.heard_s)
            finally:
                self._recalling = False

    async def _go_on(self) -> None:
        async with self._sending:
            for segment in tuple(self._segments):
                if self._paused or self._abandoned or segment.sent:
                    return
                if self._start_atask is None:
                    self._start_atask = asyncio.create_task(self._start_task())
                await asyncio.shield(self._start_atask)
                writer = await self._room.local_participant.stream_bytes(
                    name="AUDIO_rest",
                    topic=AUDIO_STREAM_TOPIC,
                    destination_identities=[self._avatar],
                    attributes={"sample_rate": str(segment.rate), "num_channels": str(segment.channels)},
                )
                segment.sent = True
                await writer.write(bytes(segment.pcm))
                if segment.whole:
                    await writer.aclose()
                else:
                    self._stream_writer = writer

    async def _abandon(self) -> None:
        """An interruption of speech that was taken back: it is over where it stopped."""
        async with self._sending:
            self._abandoned = False
            if any(segment.sent for segment in self._segments):  # it went on meanwhile
                super().clear_buffer()
                return
            while self._segments:
                self.on_playback_finished(playback_position=0.0, interrupted=True)

    def _handle_playback_finished(self, data: rtc.RpcInvocationData) -> str:
        if data.caller_identity == self._avatar:
            sent = [segment for segment in self._segments if segment.sent]
            if not sent and self._segments:
                return "ok"  # too late: the clock has said it
            report = json.loads(data.payload)
            if self._recalling and report["interrupted"]:
                sent[0].take_back(float(report["playback_position"]))
                if len(sent) == 1:
                    self._recalled.set()
                return "ok"
            answer: str = super()._handle_playback_finished(data)
            if self._recalling and len(sent) == 1:
                self._recalled.set()  # it was heard to its end
            return answer
        return str(super()._handle_playback_finished(data))

    # --- an avatar that leaves

    def _on_left(self, who: rtc.RemoteParticipant) -> None:
        if who.identity != self._avatar or not self._started:
            return
        self.flush()  # what is made from now on is a segment of its own
        self._started, self._start_atask = False, None  # and waits for the avatar as at the beginning
        if any(segment.sent for segment in self._segments) and self._doubt is None:
            log.warning("the avatar left while it had speech", extra={"avatar": self._avatar})
            first = self._segments[0]
            self._doubt = self.captured_playout_segments, first.position_s - first.heard_s
            self._certain.clear()
            self._give_up_in(AWAY_S)

    def _on_back(self, who: rtc.RemoteParticipant) -> None:
        if who.identity == self._avatar and self._doubt is not None:
            self._give_up_in(BACK_S)

    def _give_up_in(self, seconds: float) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._giving_up = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        """What the avatar had is lost: it is reported as the avatar would have done."""
        doubt = self._settle()
        if doubt is None:
            return
        captured, position_s = doubt
        for _ in range(captured - (self.captured_playout_segments - self._pending_playback_count)):
            self.on_playback_finished(playback_position=position_s, interrupted=True)
            position_s = 0.0

    def _settle(self) -> tuple[int, float] | None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        doubt, self._doubt = self._doubt, None
        self._certain.set()
        return doubt
