"""`AvatarOutput`: sends the speech of a livekit-agents session to its avatar, can pause, and goes on without an avatar that is
lost."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import DataStreamAudioOutput
from livekit.agents.voice.avatar._datastream_io import AUDIO_STREAM_TOPIC, RPC_CLEAR_BUFFER
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities

from .captured_segment import CapturedSegment

log = logging.getLogger("livekit.plugins.musetalk")

LEAD_S = 3.0
"""The avatar has so much speech more than is heard. It bridges a busy moment here, and is little to take back and to send again."""
PIECE_S = 0.2
"""Of speech that is sent at once: a pause waits for one piece at most."""
BACKLOG_S = 120.0
"""So much speech may wait here; `capture_frame` waits with more."""
SEND_S = 10.0
"""A piece that takes longer does not arrive any more."""
AWAY_S = 30.0
"""An avatar that does not come back within so long has lost the speech it had."""
BACK_S = 2.0
"""One that is back says within so long whether it still has it."""
RECALL_S = 2.0
"""An avatar says within so long how much of the speech was heard that is taken back from it; else the clock says it."""
OVERDUE_S = 30.0
"""An avatar that reports nothing for so long after the end of what it has will not: its own patience is 20 s."""
_LOOK_S = 0.1


class AvatarOutput(DataStreamAudioOutput):
    """`DataStreamAudioOutput` that can pause, and does not wait for an avatar that died.

    What comes is kept here until it was heard. One task sends it, a little ahead of what is heard, takes it back, and reports the
    end of each segment, once, whatever becomes of the avatar. livekit-agents counts a segment with its first frame, also where
    that capture is cancelled: so a frame is taken at once.

    A pause takes the speech back that was not heard (`lk.clear_buffer`); to resume is to send it again, as another stream. To
    livekit-agents both are one segment, whose position counts from its first sample.

    An avatar that left and comes back calls `lk.playback_started` when it still has the speech that was sent to it: then all goes
    on. If it does not, it is a new one, and gets what was not heard by the clock. If none comes, the speech counts as interrupted
    at the place where it was.
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
        self._segments: list[CapturedSegment] = []  # those that livekit-agents waits for, the first is being heard
        self._capturing = self._paused = self._recalling = self._closed = False
        self._doubt_s: float | None = None  # the avatar left; so many seconds of what it had of the first were heard
        self._giving_up: asyncio.TimerHandle | None = None
        self._late = 0  # reports that were not waited for
        self._moved_at = 0.0
        self._wake = asyncio.Event()
        self._room_for_more = asyncio.Event()
        self._recalled = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._awaited: asyncio.Task[None] | None = None
        room.on("participant_disconnected", self._on_left)
        room.on("participant_connected", self._on_back)

    # --- what livekit-agents asks for

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Takes a frame, and waits while `BACKLOG_S` is here. Cancelling takes nothing back."""
        await AudioOutput.capture_frame(self, frame)
        if not self._capturing:
            self._capturing, self._pushed_duration = True, 0.0
            self._segments.append(CapturedSegment(frame.sample_rate, frame.num_channels))
        self._segments[-1].pcm += bytes(frame.data)
        self._pushed_duration += frame.duration
        self._nudge()
        if self._backlog_s > BACKLOG_S and not self._closed:
            self._room_for_more.clear()
            await self._room_for_more.wait()

    def flush(self) -> None:
        AudioOutput.flush(self)
        if self._capturing:
            self._capturing, self._segments[-1].whole = False, True
            self._nudge()

    def pause(self) -> None:
        """What is heard stops; what was not heard waits here. Idempotent."""
        AudioOutput.pause(self)
        self._paused = True
        self._nudge()

    def resume(self) -> None:
        """Goes on where it stopped. Idempotent."""
        AudioOutput.resume(self)
        self._paused = False
        self._nudge()

    def clear_buffer(self) -> None:
        """Ends what came so far, where it is."""
        for segment in self._segments:
            segment.dropped = True
        self._give_up()
        self._nudge()

    def on_playback_started(self, *, created_at: float) -> None:
        """The avatar is heard: at the beginning of a segment, after a pause, and when it says that it still has what it had."""
        self._moved_at = time.monotonic()
        if self._doubt_s is not None:
            self._settle()
            return
        segment = next((segment for segment in self._segments if segment.there), None)
        if segment is None:
            return  # it was taken back meanwhile
        segment.playing_since = self._moved_at
        self._nudge()
        if not segment.begun:
            segment.begun = True
            super().on_playback_started(created_at=created_at)

    def on_playback_finished(
        self, *, playback_position: float, interrupted: bool, synchronized_transcript: str | None = None
    ) -> None:
        """A segment is over. The position counts from where the avatar's part of it began."""
        if self._segments:
            segment = self._segments.pop(0)
            if self._capturing and not self._segments:  # what still comes of it is a segment of its own
                self._capturing = False
                AudioOutput.flush(self)
            playback_position += segment.heard_s
            synchronized_transcript = self.said(playback_position, interrupted)
        super().on_playback_finished(
            playback_position=playback_position,
            interrupted=interrupted,
            synchronized_transcript=synchronized_transcript,
        )

    async def aclose(self) -> None:
        """Listens no more, and ends what was not heard. Nothing waits for the avatar afterwards."""
        self._room.off("participant_disconnected", self._on_left)
        self._room.off("participant_connected", self._on_back)
        self._settle()
        self._closed = True
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        self._lose_all()
        self._room_for_more.set()

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

    # --- the task that sends

    def _nudge(self) -> None:
        self._wake.set()
        if self._closed:
            self._lose_all()
        elif self._segments and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._run(), name="avatar-output")

    async def _run(self) -> None:
        """Does what is to be done, one thing after the other, until cancelled."""
        while True:
            self._wake.clear()
            try:
                moved = await self._step()
            except Exception:  # task boundary: a room that fails in any way must not leave the agent waiting
                log.warning("speech was lost on its way to the avatar", exc_info=True)
                self._lose_all()
                moved = True
            if self._backlog_s <= BACKLOG_S:
                self._room_for_more.set()
            if not moved:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S if self._segments else None):
                        await self._wake.wait()

    async def _step(self) -> bool:
        """The next thing that is to be done; False when it is to wait."""
        if self._doubt_s is not None or not self._segments:
            return False
        there = any(segment.there for segment in self._segments)
        if there and (self._paused or self._segments[0].dropped):
            await self._take_back()
        elif self._segments[0].dropped:
            self.on_playback_finished(playback_position=0.0, interrupted=True)
        elif there and self._overdue:
            log.warning("the avatar did not report that it was heard", extra={"avatar": self._avatar})
            self._lose_all()
        elif self._paused or not self._avatar_is_there():
            return False
        else:
            return await self._send()
        return True

    async def _send(self) -> bool:
        segment = next((segment for segment in self._segments if not segment.complete), None)
        if segment is None or self._ahead_s >= LEAD_S:
            return False
        piece = segment.next_piece(PIECE_S)
        if not piece and not segment.whole:
            return False
        async with asyncio.timeout(SEND_S):
            writer = segment.writer or await self._open(segment)
            if piece and segment.writer is writer:
                await writer.write(piece)
            over = segment.writer is not writer or segment not in self._segments  # taken back or reported, meanwhile
            if not over:
                segment.sent += len(piece)
            if over or (segment.whole and segment.sent == len(segment.pcm)):
                segment.writer = None if segment.writer is writer else segment.writer
                await writer.aclose()
        self._moved_at = time.monotonic()
        return True

    async def _open(self, segment: CapturedSegment) -> rtc.ByteStreamWriter:
        segment.there = True
        writer = await self._room.local_participant.stream_bytes(
            name="AUDIO",
            topic=AUDIO_STREAM_TOPIC,
            destination_identities=[self._avatar],
            attributes={"sample_rate": str(segment.rate), "num_channels": str(segment.channels)},
        )
        if segment.there:
            segment.writer = writer
        return writer

    async def _take_back(self) -> None:
        """Stops the avatar. What it had and was not heard is here again."""
        writers = [segment.writer for segment in self._segments if segment.writer is not None]
        heard = [(segment, segment.position_s - segment.heard_s) for segment in self._segments if segment.there]
        self._recalled.clear()
        self._recalling = True
        try:
            async with asyncio.timeout(RECALL_S):
                await self._room.local_participant.perform_rpc(
                    destination_identity=self._avatar, method=RPC_CLEAR_BUFFER, payload=""
                )
                if any(segment.there for segment in self._segments):
                    await self._recalled.wait()
        except (rtc.RpcError, TimeoutError) as error:
            log.warning("the avatar did not say where it stopped", extra={"error": repr(error)})
            for segment, heard_s in heard:
                if segment.there and segment in self._segments:
                    segment.take_back(heard_s)
                    self._late += 1
        finally:
            self._recalling = False
        async with asyncio.timeout(SEND_S):
            for writer in writers:  # not before: the voice is to stop at once
                await writer.aclose()

    def _avatar_is_there(self) -> bool:
        """With its tracks. If it is not, `_wake` is set when it is. Raises what keeps it from being waited for."""
        if self._started:
            return True
        if self._start_atask is None:
            self._start_atask = asyncio.create_task(self._start_task())
        if self._start_atask.done():
            failed, self._start_atask = self._start_atask, None
            failed.result()
        elif self._start_atask is not self._awaited:
            self._awaited = self._start_atask
            self._awaited.add_done_callback(lambda _: self._wake.set())
        return False

    def _lose_all(self) -> None:
        """Nothing that came so far will be heard any more."""
        for segment in self._segments:
            segment.take_back(segment.position_s - segment.heard_s)
        while self._segments:
            first = self._segments[0]
            self.on_playback_finished(playback_position=0.0, interrupted=bool(first.pcm) or not first.whole)

    @property
    def _overdue(self) -> bool:
        """The avatar has speech, and neither plays nor reports it."""
        first = self._segments[0]
        silent = first.playing_since is None or first.position_s >= first.sent_s
        return silent and time.monotonic() - self._moved_at > OVERDUE_S

    @property
    def _ahead_s(self) -> float:
        return sum(segment.sent_s - segment.position_s for segment in self._segments if segment.there)

    @property
    def _backlog_s(self) -> float:
        return sum(segment.end_s - segment.sent_s for segment in self._segments)

    def _handle_playback_finished(self, data: rtc.RpcInvocationData) -> str:
        if data.caller_identity != self._avatar:
            return str(super()._handle_playback_finished(data))
        self._moved_at = time.monotonic()
        if self._late:
            self._late -= 1
            return "ok"  # the clock has said it
        segment = next((segment for segment in self._segments if segment.there), None)
        if segment is None:
            return "ok"
        answer = "ok"
        report = json.loads(data.payload)
        if report["interrupted"] and (self._recalling or segment.dropped):
            segment.take_back(float(report["playback_position"]))
        else:
            answer = str(super()._handle_playback_finished(data))
        if not any(segment.there for segment in self._segments):
            self._recalled.set()
        self._nudge()
        return answer

    # --- an avatar that leaves

    def _on_left(self, who: rtc.RemoteParticipant) -> None:
        if who.identity != self._avatar or not self._started:
            return
        self._started, self._start_atask = False, None  # what comes waits for the avatar as at the beginning
        self._late = 0
        if any(segment.there for segment in self._segments) and self._doubt_s is None:
            log.warning("the avatar left while it had speech", extra={"avatar": self._avatar})
            first = self._segments[0]
            self._doubt_s = first.position_s - first.heard_s
            if self._recalling or self._paused or first.dropped:  # it cannot be asked any more
                self._give_up()
            else:
                self._give_up_in(AWAY_S, self._end_all)

    def _on_back(self, who: rtc.RemoteParticipant) -> None:
        if who.identity == self._avatar and self._doubt_s is not None:
            self._give_up_in(BACK_S, self._give_up)

    def _give_up_in(self, seconds: float, act: Callable[[], None]) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._giving_up = asyncio.get_running_loop().call_later(seconds, act)

    def _give_up(self) -> None:
        """What the avatar had is lost: what was not heard of it is here again, for the one that is back."""
        heard_s = self._settle()
        if heard_s is None:
            return
        for segment in self._segments:
            if segment.there:
                segment.take_back(heard_s)
                heard_s = 0.0
        self._recalled.set()
        self._nudge()

    def _end_all(self) -> None:
        """No avatar came back."""
        self.flush()
        self.clear_buffer()

    def _settle(self) -> float | None:
        """Ends the doubt, if there is one. Returns what was heard when it began."""
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        doubt_s, self._doubt_s = self._doubt_s, None
        self._nudge()
        return doubt_s
