"""Renders frames a little ahead of time: features → engine → compositor → the channel of frames that are ready."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from musetalk_agent.clock import Clock
from musetalk_agent.compose.head_motion import HeadMotion
from musetalk_agent.compose.idle import LoopCursor
from musetalk_agent.compose.layers import laid
from musetalk_agent.compose.timeline import ShownFace, ShownFrame, Timeline
from musetalk_agent.engines.batcher import Batcher, Result
from musetalk_agent.engines.interface import EngineSession, PatchRequest
from musetalk_agent.features.av_offset import OffsetGate
from musetalk_agent.features.extractor import SpeechGate
from musetalk_agent.features.stress import StressMeter
from musetalk_agent.media.segment import Segment
from musetalk_agent.media.segment_trace import FEATURES, FRAME
from musetalk_agent.media_types import FEATURE_RATE, Feature, Patch, Pcm, Tag, VideoFrame
from musetalk_agent.publishers.base import Publisher
from musetalk_agent.session.diagnosis import PipelineStats

T = TypeVar("T")


class Channel(Generic[T]):
    """A bounded queue between two stages: the producer waits while it is full. One consumer; `discard` drops what a clear voided.

    Args:
        capacity: most items held.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """The next `put` would wait."""
        return len(self._items) >= self._capacity

    async def put(self, item: T) -> None:
        """Adds an item, waiting for room. Cancelling is safe: the item is then not in the channel."""
        while self.full:
            self._changed.clear()
            await self._changed.wait()
        self._items.append(item)
        self._changed.set()

    async def get(self) -> T:
        """Takes the oldest item, waiting for one. Cancelling is safe: nothing is lost."""
        while not self._items:
            self._changed.clear()
            await self._changed.wait()
        return self.pop()

    def items(self) -> tuple[T, ...]:
        """What it holds, oldest first, without taking it."""
        return tuple(self._items)

    def peek(self) -> T | None:
        """The oldest item, or None, without taking it."""
        return self._items[0] if self._items else None

    def pop(self) -> T:
        """Takes the oldest item. Raises IndexError when there is none."""
        item = self._items.popleft()
        self._changed.set()
        return item

    def discard(self, worthless: Callable[[T], bool] = lambda _: True) -> int:
        """Drops every item for which `worthless` holds; returns how many."""
        kept = [item for item in self._items if not worthless(item)]
        dropped = len(self._items) - len(kept)
        self._items = deque(kept)
        self._changed.set()
        return dropped


log = logging.getLogger(__name__)

AHEAD_FRAMES = 8
"""Frames kept ready: 320 ms at 25 fps, enough for a hiccup and little to throw away on a barge-in."""
IN_FLIGHT = 3
"""Frames of one session that the engine and the compositor work on at once."""
UNFIT = "The engine made a picture that is not fit to be shown (black, or not a number); the idle picture stands in."
_FEATURE_STEP = FEATURE_RATE // 5  # samples per call, so that a long utterance sent at once shows its first frame early
OPENING_FRAMES = 3
"""Over which speech takes the mouth over from the idle clip."""
_REST_AHEAD_S = 0.6  # silence is judged this much before it is heard, at most: what was taken for it is kept in memory
_WAKE_AHEAD_FRAMES = (
    4  # frames of returning speech are begun this much before they are due: the engine's time and a margin
)
_IDLE_PATIENCE_S = 0.5  # an idle mouth's deadline: later than that of anything that is spoken
_LOOK_AGAIN_S = 0.25  # the voice's place may change while one waits for it


@dataclass(frozen=True, eq=False)
class OpenFace(ShownFace):
    """A face that the engine has opened for the session."""

    engine_session: EngineSession


@dataclass(frozen=True, slots=True)
class RenderedFrame:
    """A frame that is ready, with what the next one may need to know of it. Closing frames have no frame number.

    `frame` is None without a viewer: it was not drawn, and the frame before stays. `failed`: the engine made no patch
    for it, so that it is the idle frame.
    """

    frame: VideoFrame | None
    segment: Segment | None
    tag: Tag
    tick: int
    feature: Feature
    blend_weight: float
    failed: bool = False


class _Composition(Future[VideoFrame]):
    """A frame that is composed where its patch is made, in place of another thread that would be woken for it and wake the event
    loop; done before the patch is there, or not at all."""

    def __init__(self, look: ShownFrame[OpenFace], tag: Tag) -> None:
        super().__init__()
        self._look, self._tag = look, tag

    def __call__(self, patch: Patch | None) -> None:
        try:
            self.set_result(_composed(self._look, patch, None, self._tag))
        except Exception as error:  # noqa: BLE001 - the engine's thread serves every session; who awaits the frame gets what it raised
            self.set_exception(error)


@dataclass(frozen=True, slots=True)
class _InFlightFrame:
    segment: Segment | None
    tag: Tag
    tick: int
    feature: Feature
    blend_weight: float
    look: ShownFrame[OpenFace]
    patch: Result | None
    leaving: Result | None = None
    composition: _Composition | None = None

    def cancel(self) -> None:
        """What the engine has not begun for it is not made."""
        for ordered in (self.patch, self.leaving):
            if ordered is not None:
                ordered.cancel()


@dataclass(frozen=True, slots=True)
class MediaContext:
    """What the parts of one session's media path share.

    `publisher` owns the playout clock; `batcher` is the engine that serves every session; `timeline` and `cursor` are the idle
    clip, or those that follow each other, and the position; `motion` is how heads of still
    pictures move; `executor` has the threads for features and composition.
    `av_offset_ms` is how much later than the voice the lips move. The two events wake the player's tasks.
    """

    publisher: Publisher
    batcher: Batcher
    timeline: Timeline[OpenFace]
    cursor: LoopCursor
    motion: HeadMotion
    clock: Clock
    executor: Executor
    fps: int
    av_offset_ms: int = 0
    stats: PipelineStats = field(default_factory=PipelineStats)
    audio_wake: asyncio.Event = field(default_factory=asyncio.Event)
    video_wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lookahead_s(self) -> float:
        """Audio past a frame's end that its lips wait for, in seconds."""
        return max(0, self.batcher.engine.features.lookahead_ms - self.av_offset_ms) / 1000

    def listening(self) -> OffsetGate:
        """Decides the frames of one segment after the other."""
        return OffsetGate(SpeechGate(self.batcher.engine.features, self.fps), self.fps, self.av_offset_ms)

    def wake_player(self) -> None:
        """More PCM, an end, or a frame has come."""
        self.audio_wake.set()
        self.video_wake.set()


class FrameRenderer:
    """Renders one session's frames into `ready`."""

    def __init__(self, context: MediaContext) -> None:
        self.ready: Channel[RenderedFrame] = Channel(AHEAD_FRAMES)
        self.generation = 0
        self._publisher, self._wake_player = context.publisher, context.wake_player
        self._batcher, self._timeline = context.batcher, context.timeline
        self._cursor, self._clock, self._executor = context.cursor, context.clock, context.executor
        self._motion, self._stress = context.motion, StressMeter(context.fps)
        self._stats, self._fps = context.stats, context.fps
        self._new_listening = context.listening
        self._listening = context.listening()
        self._segments: deque[Segment] = deque()
        self._in_flight: Channel[_InFlightFrame] = Channel(IN_FLIGHT)
        self._wake = asyncio.Event()
        self._close_from: tuple[Feature, float] | None = None
        self._last: tuple[Feature, float] = (self._rest_feature, 0.0)
        self._mouths: asyncio.Queue[OpenFace] = asyncio.Queue()  # a few: each is put in by a change of the avatar
        self._mouths.put_nowait(context.timeline.newest)
        self._cued = 0
        self._mute: Segment | None = None  # the segment whose features failed

    def add(self, segment: Segment) -> None:
        """A new segment; its frames follow those of the segments before it."""
        self._segments.append(segment)
        self._wake.set()

    def poke(self) -> None:
        """A segment got more PCM or has ended."""
        self._wake.set()

    def on_face(self, face: OpenFace) -> None:
        """The timeline has a new face."""
        self._mouths.put_nowait(face)

    @property
    def _rest_feature(self) -> Feature:
        return self._timeline.newest.engine_session.rest

    def clear(self, shown: RenderedFrame | None) -> None:
        """Drops everything under way and lets the mouth close from the frame shown last."""
        self.generation += 1
        self._segments.clear()
        self.ready.discard()
        self._drop_flights()
        self._cursor.release()
        self._motion.drop_after(self._cursor.shown)
        if shown is not None and shown.blend_weight > 0:
            self._close_from = (shown.feature, shown.blend_weight)
        self._last = (self._rest_feature, 0.0)
        self._wake.set()

    def close_mouth(self) -> None:
        """The voice pauses inside a segment: the mouth glides shut until it goes on."""
        self._close_from = self._last
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled. What the engine raises is counted and shown as the idle frame, not raised here."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feature_loop(), name="production-order")
            group.create_task(self._compose(), name="production-compose")
            group.create_task(self._close_idle_mouths(), name="production-idle")

    async def _close_idle_mouths(self) -> None:
        """Has the engine make what each face wants over its idle frames, one at a time, and after everything that is spoken."""
        while True:
            face = await self._mouths.get()
            await self._close_mouths_of(face)

    async def _close_mouths_of(self, face: OpenFace) -> None:
        session = face.engine_session
        for idle_index in session.missing_idle_patches():
            if face not in self._timeline.faces:
                return
            request = PatchRequest(session, idle_index, session.rest)
            try:
                with self._clock.working():
                    patch = await self._batcher.submit(request, self._clock.now() + _IDLE_PATIENCE_S)
            except Exception as error:  # noqa: BLE001 - the idle clip is shown as it is; what ends the engine ends the session elsewhere
                log.warning(
                    "idle mouths are not closed",
                    extra={"pose": idle_index, "error": f"{type(error).__name__}: {error}"},
                )
                return
            if patch is None:
                log.warning(
                    "idle mouths are not closed: the engine's patch is not fit to be shown", extra={"pose": idle_index}
                )
                return
            session.store_idle_patch(idle_index, patch)

    async def _feature_loop(self) -> None:
        generation = self.generation
        while True:
            if generation != self.generation:
                generation = self.generation
                self._reset_stream()
            if self._close_from is not None:
                (feature, blend_weight), self._close_from = self._close_from, None
                await self._close(feature, blend_weight)
            elif not self._segments or not await self._advance(self._segments[0]):
                self._wake.clear()
                if self._close_from is None and generation == self.generation and not self._has_work():
                    await self._wake.wait()

    def _has_work(self) -> bool:
        if not self._segments:
            return False
        first = self._segments[0]
        return len(first.for_features) > 0 or first.ended

    def _reset_stream(self) -> None:
        self._listening.reset()
        self._stress.reset()
        self._cued = 0

    async def _advance(self, segment: Segment) -> bool:
        """One step of the segment; False when it has to wait for PCM."""
        if len(segment.cues) > self._cued:
            self._listening.cue(segment.cues[self._cued :])
            self._cued = len(segment.cues)
        if segment.resting and not await self._heard_up_to(segment, _REST_AHEAD_S):
            return True
        samples = segment.take_features(_FEATURE_STEP)
        if not len(samples) and not segment.ended:
            return False
        last = not len(samples)
        self._stress.push(samples)
        decided = await self._decided(segment, None if last else samples)
        for feature in decided:
            stress = self._stress.take()
            if segment.generation != self.generation:
                return True
            if feature is None:
                await self._rest(segment)
                continue
            segment.stages.reach(FEATURES)
            self._stats.add("features", 1)
            await self._submit(segment, feature, stress)
        if last and segment.generation == self.generation:
            self._segments.popleft()
            self._reset_stream()
            if not self._segments:
                self._close_from = self._last
        return True

    async def _decided(self, segment: Segment, samples: Pcm | None) -> list[Feature | None]:
        """What more samples, or the end (None), decide of the segment's next frames: a feature each, None where there is no speech.

        An extractor that raises leaves the rest of the segment without lips, because its frames cannot be counted on any more; its
        audio goes on, and so does the session.
        """
        if segment is self._mute:
            return []
        listening = self._listening
        try:
            if samples is not None and listening.is_quick(len(samples)):
                return listening.push(samples)  # to wake a thread for it, and then the loop, costs as much again
            return await self._in_thread(listening.flush if samples is None else lambda: listening.push(samples))
        except Exception as error:  # one segment's features: it goes on without lips, and the session lives
            log.exception("features failed", extra={"segment": segment.number})
            self._stats.fail("features", f"{type(error).__name__}: {error}")
            self._mute = segment
            self._listening = self._new_listening()
            self._close_from = self._last
            return []

    async def _rest(self, segment: Segment) -> None:
        """No one speaks in the segment's next frame. Before the first such frame the mouth glides shut; then nothing is made."""
        begins = not segment.resting
        segment.frame_rests()
        self._wake_player()
        if begins:
            self._close_from = None
            await self._close(*self._last, going_on=lambda: segment.resting)

    async def _heard_up_to(self, segment: Segment, ahead_s: float) -> bool:
        """Waits until the segment's next frame is at most `ahead_s` ahead of the voice. False when it was cleared meanwhile."""
        while segment.generation == self.generation:
            wait_s = self._due_in(segment, segment.frames_ordered) - ahead_s
            if wait_s <= 0:
                return True
            await self._clock.wait(self._wake, self._clock.now() + min(wait_s, _LOOK_AGAIN_S))
        return False

    def _due_in(self, segment: Segment, frame: int) -> float:
        """Seconds until a frame is heard: infinite while the segment has not begun, 0 while no transport carries the audio."""
        if segment.origin is None:
            return math.inf
        seconds = self._publisher.playout.time_of(segment.frame_position(frame)) - self._clock.now()
        return seconds if math.isfinite(seconds) else 0.0

    async def _submit(self, segment: Segment, feature: Feature, stress: float) -> None:
        lead: int | None = None
        if segment.resting:
            if not await self._heard_up_to(segment, _WAKE_AHEAD_FRAMES / self._fps):
                return
            lead = max(0, int(min(1.0, self._due_in(segment, segment.frames_ordered)) * self._fps))
        blend_weight = min(1.0, self._last[1] + 1 / OPENING_FRAMES)
        tag = Tag(segment.number, segment.frame_ordered(), segment.generation)
        await self._submit_frame(segment, tag, feature, blend_weight, lead, stress)

    async def _close(self, feature: Feature, blend_weight: float, going_on: Callable[[], bool] | None = None) -> None:
        """The frames after speech: its last mouth shape fades to rest while the idle clip takes the mouth back.

        They end when there is other work, or, with `going_on`, when that is false.
        """
        count = self._batcher.engine.fade_out_frames if blend_weight > 0 else 0
        generation = self.generation
        for step in range(1, count + 1):
            over = self._has_work() if going_on is None else not going_on()
            if generation != self.generation or over:
                return
            eased = self._timeline.newest.engine_session.fade_to_silence(feature, min(1.0, 2 * step / count))
            fading = blend_weight * (1 - step / (count + 1))
            await self._submit_frame(None, Tag(0, 0, generation), eased, fading)
        self._last = (self._rest_feature, 0.0)

    async def _submit_frame(
        self,
        segment: Segment | None,
        tag: Tag,
        feature: Feature,
        blend_weight: float,
        lead: int | None = None,
        stress: float = 0.0,
    ) -> None:
        tick = self._cursor.reserve(lead)
        if segment is not None:
            self._motion.speak(tick, stress)
        look = self._timeline.at(tick)
        self._last = (feature, blend_weight)
        patch = leaving = composition = None
        if self._publisher.state.watched:
            # a session with many frames ready can wait longer than one with none
            deadline = self._clock.now() + (len(self.ready) + 1) / self._fps
            request = PatchRequest(look.face.engine_session, look.idle_index, feature, blend_weight)
            if (old := look.leaving) is None:
                composition = _Composition(look, tag)
            patch = self._batcher.submit(request, deadline, composition)
            if old is not None:
                going = PatchRequest(old.face.engine_session, old.idle_index, feature, blend_weight)
                leaving = self._batcher.submit(going, deadline)
        flight = _InFlightFrame(segment, tag, tick, feature, blend_weight, look, patch, leaving, composition)
        await self._in_flight.put(flight)
        if tag.generation != self.generation:
            self._drop_flights()

    def _drop_flights(self) -> None:
        """Drops what belongs to a cleared generation; frames that the engine has not begun never reach it."""
        for (
            flight
        ) in self._in_flight.items():  # nothing awaits these: `_compose` took the one that it awaits out of the channel
            if flight.tag.generation != self.generation:
                flight.cancel()
        self._in_flight.discard(lambda flight: flight.tag.generation != self.generation)

    async def _compose(self) -> None:
        while True:
            flight = await self._in_flight.get()
            frame: VideoFrame | None = None
            failed = False
            if flight.patch is not None:
                frame, failed = await self._drawn(flight, flight.patch)
            if flight.tag.generation != self.generation:
                continue
            made = RenderedFrame(
                frame, flight.segment, flight.tag, flight.tick, flight.feature, flight.blend_weight, failed
            )
            await self.ready.put(made)
            if flight.tag.generation != self.generation:
                self.ready.discard(lambda m: m.tag.generation != self.generation)
                continue
            if flight.segment is not None:
                flight.segment.frame_made()
                flight.segment.stages.reach(FRAME)
            self._wake_player()

    async def _drawn(self, flight: _InFlightFrame, ordered: Result) -> tuple[VideoFrame, bool]:
        """The frame with the patch that was ordered, and whether the engine failed."""
        patch, answered = await self._patch(ordered)
        failed = not answered or (patch is None and flight.blend_weight > 0)
        if not failed:
            self._stats.add("patches", 1)
        elif answered:
            self._stats.fail("patches", UNFIT)
        # without a patch the clip that goes away keeps its own mouth for the moment
        leaving = None if flight.leaving is None else (await self._patch(flight.leaving))[0]
        composition = flight.composition
        if composition is not None and composition.done():
            frame = composition.result()
        else:
            frame = await self._in_thread(partial(_composed, flight.look, patch, leaving, flight.tag))
        if flight.tag.generation == self.generation:
            self._stats.add("composed", 1)
        return frame, failed

    async def _patch(self, patch: asyncio.Future[Patch | None]) -> tuple[Patch | None, bool]:
        """A patch that was ordered, and whether the engine answered. Returns None where the face does not fit."""
        try:
            with self._clock.working():
                return await patch, True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not patch.cancelled() or (task is not None and task.cancelling()):
                raise
            # else the batcher was closed, and this loop must go on
        except Exception as error:  # noqa: BLE001 - a frame that fails is shown idle and reported in the diagnosis; speech goes on
            self._stats.fail("patches", f"{type(error).__name__}: {error}")
        return None, False

    async def _in_thread(self, work: Callable[[], T]) -> T:
        with self._clock.working():
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _composed(look: ShownFrame[OpenFace], patch: Patch | None, leaving: Patch | None, tag: Tag) -> VideoFrame:
    frame = look.face.compositor.compose(look.idle_index, patch, tag, look.pose)
    old = look.leaving
    if old is None:
        return laid(frame)
    return laid(old.mixed(old.face.compositor.compose(old.idle_index, leaving, tag, old.pose), frame, look))
