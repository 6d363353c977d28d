"""Sends rendered frames and PCM to the publisher in sync: audio goes first, and frames follow its playout position."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from musetalk_agent.agent_metrics import FRAMES, LIP_LATENCY, UNDERRUNS
from musetalk_agent.compose.idle_frames import IdleFrames
from musetalk_agent.media.playout import LEAST_JUMP, VOICE_LEAD_S, VoiceTimingQueue
from musetalk_agent.media.renderer import FrameRenderer, MediaContext, OpenFace, RenderedFrame
from musetalk_agent.media.scheduler import AdaptiveDelay, FrameAction, Outcome, RecentFrames, Scheduler
from musetalk_agent.media.segment import LEAST_CUT, ROOM_RATE, Caption, Segment
from musetalk_agent.media.segment_queue import PlaybackQueue
from musetalk_agent.media.segment_trace import PUBLISHED
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.messages import Cleared, Event

log = logging.getLogger(__name__)

PREBUFFERED_SAMPLES = ROOM_RATE // 4
"""With a quarter of a second buffered the sender is ahead of real time, and playback starts without a delay."""
_ENGINE_S = 0.015
"""From the last audio that a frame needs to the frame, on a machine that keeps up (`warp`: 10 ms)."""
_LEAST_IN_HAND_S = 0.06
"""A microphone's audio begins with no less than this in hand: blocks are up to 40 ms, and the event loop may stall for a moment."""
_COUNTED = {act: FRAMES.labels(act.name.lower()) for act in FrameAction}
_FAILED = FRAMES.labels("failed")
START_TIMEOUT_S = 0.6
"""Audio does not wait longer than this for its first frame."""


@dataclass(slots=True)
class PlayerStatistics:
    """What was shown and heard. Latencies are milliseconds from a frame's last PCM to its publishing, newest last; `late_ms` is
    how long after its audio was due a speaking frame was published. `failed` frames have no patch: the idle frame was shown in
    their place; `unwatched` ones were not drawn, for want of a viewer. Neither counts as spoken or in the latencies.
    `clock_late` is how much after the moment that it waited for each frame left, by the time of a frame: what makes frames late by
    itself does not count.
    """

    spoken: int = 0
    failed: int = 0
    unwatched: int = 0
    idle: int = 0
    underruns: int = 0
    cut: int = 0
    began_without_lips: int = 0
    lip_latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=512))
    late_ms: deque[float] = field(default_factory=lambda: deque(maxlen=250))
    clock_late: deque[float] = field(default_factory=lambda: deque(maxlen=600))


@dataclass(frozen=True, slots=True)
class PlayerOutputs:
    """Where the player reports to.

    `emit` takes playback events and warnings, in order; `speaking` is called with True when the first segment begins and False when
    the last one is over; `spoken` takes, of each block of speech, when it is heard (monotonic seconds), its segment, and its first
    second of it. `timings` takes the times of audio that another process publishes: frames then leave later by `VOICE_LEAD_S`.
    `show_caption` takes the text that is being heard.
    """

    emit: Callable[[Event], None]
    speaking: Callable[[bool], None]
    spoken: Callable[[float, int, float], None]
    timings: VoiceTimingQueue | None = None
    show_caption: Callable[[Caption], None] = lambda _: None


class Player:
    """Paces one session: takes frames from the renderer and audio from the segments, and hands both to an open publisher."""

    def __init__(
        self, context: MediaContext, renderer: FrameRenderer, idle: IdleFrames[OpenFace], outputs: PlayerOutputs
    ) -> None:
        self.statistics = PlayerStatistics()
        self._publisher, self._renderer = context.publisher, renderer
        self._idle, self._cursor = idle, context.cursor
        self._clock, self._stats, self._emit, self._speaking = (
            context.clock,
            context.stats,
            outputs.emit,
            outputs.speaking,
        )
        self._scheduler = Scheduler(context.fps, context.clock.now())
        self.recent = RecentFrames(context.fps)
        self._queue = PlaybackQueue(outputs.emit, outputs.show_caption)
        self._audio_wake, self._video_wake, self.poke = context.audio_wake, context.video_wake, context.wake_player
        self._shown: RenderedFrame | None = None
        self._latest: VideoFrame | None = None
        self._lookahead_s = context.lookahead_s
        self._delay = AdaptiveDelay(self._lookahead_s)
        self._dropped_before = 0  # of the segments that are over
        self._is_speaking = False
        self._timings, self._spoken = outputs.timings, outputs.spoken
        if self._timings is not None:
            self._publisher.playout.video_delay_s = VOICE_LEAD_S
        self._pushing: Segment | None = None  # of which a block is being handed over
        self._resting = False  # no one speaks in the segment that is being heard

    @property
    def resting(self) -> bool:
        """No one speaks in the segment that is being heard."""
        return self._resting

    @property
    def open_segments(self) -> int:
        """Segments that are not over."""
        return len(self._queue.open)

    def report(self) -> dict[str, float | int | str | None]:
        """Figures for `/debug`: frames by fate, underruns, and the p50 and p95 of the lips' latency in milliseconds."""
        statistics, latencies = self.statistics, sorted(self.statistics.lip_latency_ms)
        late = sorted(statistics.late_ms)
        return {
            "spoken": statistics.spoken,
            "failed": statistics.failed,
            "unwatched": statistics.unwatched,
            "idle": statistics.idle,
            "idle_late": self._idle.late,
            "dropped": self._scheduler.dropped,
            "held": self._scheduler.held,
            "resting": self._resting,
            "cut_ms": round(1000 * self.statistics.cut / ROOM_RATE),
            "stalls": self._scheduler.stalls,
            "underruns": statistics.underruns,
            "began_without_lips": statistics.began_without_lips,
            "margin_ms": round(1000 * self._delay.seconds),
            "skew_ms": round(late[len(late) // 2], 1) if late else None,
            "lip_latency_p50_ms": round(latencies[len(latencies) // 2], 1) if latencies else None,
            "lip_latency_p95_ms": round(latencies[len(latencies) * 95 // 100], 1) if latencies else None,
        }

    @property
    def position_s(self) -> float:
        """Seconds of speech heard since the session began."""
        return self._queue.position_s(self._publisher.playout.position())

    @property
    def buffered_s(self) -> float:
        """Seconds of speech received and not yet heard."""
        return self._queue.buffered_s(self._publisher.playout.position())

    @property
    def live_delay_s(self) -> float:
        """`buffered_s` of a microphone when nothing is late: a frame's audio and what its features look ahead, the engine's
        time and the margin. Audio leaves earlier than its frame by its longer way to the viewer.
        """
        lips_s = 1 / self._fps + self._lookahead_s + _ENGINE_S + self._delay.seconds
        return max(lips_s, _LEAST_IN_HAND_S + self._publisher.playout.audio_path_s)

    @property
    def flows(self) -> bool:
        """A segment is being heard, and the sink has some of it."""
        return any(s.origin is not None for s in self._queue.open) and not self._publisher.playout.empty

    @property
    def heard(self) -> tuple[int, float]:
        """The segment that is being heard, or was heard last (0: none yet), and how many seconds of it."""
        return self._queue.heard(self._publisher.playout.position())

    def add(self, segment: Segment) -> None:
        """A new segment, played after those before it."""
        self._queue.open.append(segment)
        self._audio_wake.set()

    def on_pcm(self) -> None:
        """A segment got more PCM. What is shown depends on it only at the next beat, and then it is looked at."""
        self._audio_wake.set()

    def clear(self) -> Cleared:
        """Silence at once: drops every segment, emits the end of each, and closes the mouth."""
        position = self._publisher.playout.position()
        self._publisher.clear_audio()
        dropped_s = self._queue.clear(position)
        if self._timings is not None:
            self._timings.clear()
        self._renderer.clear(self._shown)
        self._idle.prepare()
        self._set_speaking(False)
        self.poke()
        cleared = Cleared(dropped_s=round(dropped_s, 3))
        self._emit(cleared)
        return cleared

    def rewind(self, position: int) -> dict[Segment, Segment]:
        """Plays everything after sample `position` of the playout clock again, frames and audio; emits no event twice.

        Returns the segments that take the place of others, by those. A block that the publisher holds back meanwhile is among what
        comes again: it must drop it. A voice that is published elsewhere was heard all the same: then nothing is played again.
        """
        if self._timings is not None:
            return {}
        position = self._publisher.playout.rewind(position)
        self._renderer.clear(self._shown)
        self._idle.prepare()
        rests = self._queue.rewind(position, self._renderer.generation)
        for rest in rests.values():
            self._renderer.add(rest)
        self.poke()
        return rests

    async def run(self) -> None:
        """Plays until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._play_audio(), name="playback-audio")
            group.create_task(self._play_video(), name="playback-video")

    # --- the voice ---------------------------------------------------------------------------------------------------

    async def _play_audio(self) -> None:
        """Hands the segments' audio to the publisher, one segment after the other, as fast as it takes it."""
        while True:
            segment = self._queue.next_unplayed()
            if segment is None:
                self._audio_wake.clear()
                await self._audio_wake.wait()
                continue
            if not await self._wait_for_start(segment):
                continue
            playout = self._publisher.playout
            while segment in self._queue.open and not segment.enqueued_all:
                least = LEAST_CUT if self._timings is None else LEAST_JUMP
                self.statistics.cut += segment.cut_delay(self._delay.seconds, least)
                block = segment.take_block()
                if block is not None:
                    begin = playout.enqueued
                    if playout.empty:  # from now on it is known when frames are due
                        self._video_wake.set()
                    if segment.origin is None:
                        segment.origin = begin
                        self._video_wake.set()
                    self._pushing = segment
                    await self._publisher.push_audio(block)
                    self._pushing = None
                    if segment in self._queue.open:
                        self._note_spoken(segment, begin)
                elif playout.empty:
                    self._delay.on_underrun(self._clock.now())
                    if not segment.resting:
                        self._renderer.close_mouth()
                    self._report_pause(segment)
                    break
                else:
                    await self._clock.wait(self._audio_wake, self._clock.now() + max(0.001, playout.queued_s()))

    def _note_spoken(self, segment: Segment, begin: int) -> None:
        """A block of the segment was handed over, whose first sample has the playout position `begin`."""
        playout, second = self._publisher.playout, segment.second_at(begin)
        self._spoken(playout.time_of(begin), segment.number, second)
        if self._timings is not None:
            self._timings.plays(segment.number, second, playout.leaves_at(begin))

    async def _wait_for_start(self, segment: Segment) -> bool:
        """Waits until the segment's next audio may be heard: its frame is ready, and a live sender has its margin."""
        frame = segment.enqueued * self._fps // ROOM_RATE
        ready_at: float | None = None
        since = self._clock.now()
        going_on = segment.origin is not None
        while segment in self._queue.open:
            now = self._clock.now()
            if going_on and segment.has_block:
                going_on = False
                if self._delay.on_resume(now):
                    self.statistics.underruns += 1
                    UNDERRUNS.inc()
            if ready_at is None and segment.has_block and segment.frames_ready > frame:
                ready_at = now
            if not segment.received and segment.ended:
                self._report_segments()
                return False
            give_up = since + START_TIMEOUT_S if segment.has_block else now + START_TIMEOUT_S
            begin_at = give_up
            if segment.microphone:
                if segment.ended or len(segment.for_room) >= self._in_hand:
                    begin_at = now
            elif ready_at is not None:
                rich = segment.ended or len(segment.for_room) >= PREBUFFERED_SAMPLES
                begin_at = now if rich else min(give_up, ready_at + self._delay.seconds)
            begin_at = max(begin_at, segment.not_before)
            if not segment.has_block:
                since = now
            elif now >= begin_at:
                self.statistics.began_without_lips += ready_at is None and not segment.microphone
                return True
            await self._clock.wait(self._audio_wake, begin_at)
        return False

    @property
    def _in_hand(self) -> int:
        """With so many samples at ROOM_RATE the audio of a microphone may leave: its frames will be ready when they are due."""
        return round((self.live_delay_s - self._publisher.playout.audio_path_s) * ROOM_RATE)

    def _report_pause(self, segment: Segment) -> None:
        """The voice stops after what was handed over: no PCM is there, or nothing takes it."""
        playout = self._publisher.playout
        if self._timings is not None and playout.enqueued:
            last = playout.enqueued - 1
            self._timings.holds(
                segment.number, segment.second_at(playout.enqueued), playout.leaves_at(last) + 1 / ROOM_RATE
            )

    # --- the frames ------------------------------------------------------------------------------------------------

    async def _play_video(self) -> None:
        self._idle.prepare()
        while True:
            made = self._next_made()
            due = None
            waiting = made is not None
            if made is not None and made.segment is not None:
                due = self._due(made.segment, made.tag.frame)
                waiting = due is not None
            asked = self._clock.now()
            decision = self._scheduler.decide(
                asked, waiting=waiting, due=due, missing=made is None and self._frame_missing()
            )
            if decision.at > self._clock.now():
                woken = await self._clock.wait(self._video_wake, decision.at)
                if woken or (decision.act is FrameAction.IDLE and self._frame_missing()):
                    self._note_speaking()
                    continue
            if self._pushing is not None and self._pushing.origin is not None and self._publisher.playout.empty:
                self._report_pause(self._pushing)
            self._scheduler.done(decision)
            if decision.at > asked or decision.act in (FrameAction.IDLE, FrameAction.HOLD):
                self.statistics.clock_late.append((self._clock.now() - decision.at) / self._scheduler.period)
            failed = decision.act is FrameAction.SHOW and made is not None and made.failed
            self._account(decision.act, failed=failed)
            if decision.act in (FrameAction.SHOW, FrameAction.DROP):
                assert made is not None
                if due is not None and decision.act is FrameAction.SHOW and not failed:
                    self.statistics.late_ms.append(1000 * (self._clock.now() - due))
                self._show(self._renderer.ready.pop(), decision.at, dropped=decision.act is FrameAction.DROP)
            elif decision.act is FrameAction.IDLE:
                self._show_idle(decision.at)
            self._report_segments()

    def _due(self, segment: Segment, frame: int) -> float | None:
        """When a frame is due; None while that is unknown, since the sink is dry and has not got its audio yet."""
        if segment.origin is None:
            return None
        position, playout = segment.frame_position(frame), self._publisher.playout
        if position >= playout.enqueued and playout.empty:
            return None
        return playout.time_of(position)

    def _account(self, act: FrameAction, *, failed: bool) -> None:
        (_FAILED if failed else _COUNTED[act]).inc()
        if act is not FrameAction.IDLE:
            outcome = Outcome.FAILED if failed else Outcome.SHOWN if act is FrameAction.SHOW else Outcome.LATE
            self.recent.note(self._clock.now(), outcome)

    def _next_made(self) -> RenderedFrame | None:
        """The next ready frame; closing frames give way as soon as speech that is being heard waits behind them."""
        ready = self._renderer.ready
        spoken = next((m for m in ready.items() if m.segment is not None), None)
        if spoken is not None and spoken.segment is not None and spoken.segment.origin is not None:
            while ready.peek() is not spoken:
                self._cursor.show(ready.pop().tick)
        return ready.peek()

    def _frame_missing(self) -> bool:
        """The voice goes on and its next frame is still being made."""
        if self._shown is None:  # the idle clip has taken over, or speech returns after a rest
            return False
        voiced = next((s for s in self._queue.open if s.origin is not None and s.frames_ready < s.frames), None)
        return voiced is not None and not voiced.resting and not self._publisher.playout.empty

    def _show(self, made: RenderedFrame, due: float, *, dropped: bool) -> None:
        self._cursor.show(made.tick)
        good = not (dropped or made.failed or made.frame is None)
        if not dropped:
            frame = made.frame or self._latest
            if frame is not None:
                self._push(frame, due)
            self._shown = None if made.failed else made
            self.statistics.spoken += good
            self.statistics.failed += made.failed
            self.statistics.unwatched += made.frame is None
        if made.segment is not None:
            if good:
                made.segment.stages.reach(PUBLISHED)
            arrived = made.segment.arrivals.pop(made.tag.frame)
            if arrived is not None and good:
                latency = self._clock.now() - arrived
                self.statistics.lip_latency_ms.append(1000 * latency)
                LIP_LATENCY.observe(latency)
        if self._renderer.ready.peek() is None and not self._goes_on(made.segment):
            self._idle.prepare()

    def _goes_on(self, segment: Segment | None) -> bool:
        """The voice goes on after a frame of this segment, so that an idle frame for the next beat would be made for nothing. One
        that is wanted all the same comes a beat late."""
        if segment is None or segment.resting or self._publisher.playout.empty:
            return False
        return not segment.ended or segment.frames_ready < segment.frames

    def _push(self, frame: VideoFrame, due: float) -> None:
        self._publisher.push_video(frame, due)
        self._latest = frame
        self._stats.add("published", 1)

    def _show_idle(self, due: float) -> None:
        """The next idle frame; once more what was shown last while that is not made yet."""
        self._shown = None
        frame = self._idle.take() or self._latest
        if frame is not None:
            self._push(frame, due)
        self.statistics.idle += 1

    def _report_segments(self) -> None:
        """Emits the events of what has begun and what is over by now."""
        for segment in self._queue.report(self._publisher.playout.position()):
            self._delay.on_segment_end(segment.frames, self._scheduler.dropped - self._dropped_before)
            self._dropped_before = self._scheduler.dropped
        self._note_speaking()

    def _note_speaking(self) -> None:
        position = self._publisher.playout.position()
        segment = next((s for s in self._queue.open if s.origin is not None), None)
        resting = segment is not None and segment.rests_at(position)
        if resting and not self._resting and segment is not None:  # a stretch of speech is over, as at a segment's end
            self._delay.on_segment_end(segment.frames_ready, self._scheduler.dropped - self._dropped_before)
            self._dropped_before = self._scheduler.dropped
        self._resting = resting
        self._set_speaking(self._queue.speaking(position))

    def _set_speaking(self, speaking: bool) -> None:
        if speaking != self._is_speaking:
            self._is_speaking = speaking
            self._speaking(speaking)

    @property
    def _fps(self) -> int:
        return round(1 / self._scheduler.period)
