"""The order of the stages: PCM → features → engine → compositor → scheduler → publisher, for one session.

    push ─► Segment ─┬─ 16 kHz ─► Production: features ─► engine ─► compositor ─► ready ─┐
                     └─ 48 kHz ───────────────────────────────────────────────► Playback ─► Publisher

Back travel only back-pressure (bounded channels), clear (the generation) and playback events.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from musetalk_agent.agent_metrics import PCM_SAMPLES
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import Clock
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.head_motion import HeadMotion
from musetalk_agent.compose.idle import LoopCursor
from musetalk_agent.compose.idle_frames import IdleFrames, load_first
from musetalk_agent.compose.passages import Sketch, enter, leave
from musetalk_agent.compose.timeline import Timeline
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.interface import EngineSession
from musetalk_agent.features.speech_detector import detect_rate, shipped_network
from musetalk_agent.media.format_detector import Finding, FormatDetector
from musetalk_agent.media.player import Player, PlayerOutputs
from musetalk_agent.media.renderer import FrameRenderer, MediaContext, OpenFace
from musetalk_agent.media.segment import Segment, Word
from musetalk_agent.media.segment_trace import FIRST_PCM, SegmentTrace
from musetalk_agent.media_types import Cue, Pcm, VideoFrame
from musetalk_agent.protocol.messages import Cleared, WarningEvent
from musetalk_agent.publishers.base import Publisher
from musetalk_agent.tasks import in_thread, supervise

_RATE_REST_S = 0.008
_ONE_JUDGE = threading.Lock()
"""Of the whole process: eight that rest three quarters of their time would hold the interpreter's lock all the time."""


class Pipeline:
    """One session's media path.

    Args:
        publisher: opened before `run`.
        batcher, session, bundle: the engine, and the avatar as the engine readied it.
        executor: threads for features and composition.
        outputs: where the player reports to.
        first: the idle frame of idle frame 0, loaded in a worker thread (`load_first`); None loads it here.
        av_offset_ms: how much later than the voice the lips move.
        seed: of the motion of still pictures.
    """

    def __init__(
        self,
        publisher: Publisher,
        batcher: Batcher,
        engine_session: EngineSession,
        bundle: Bundle,
        clock: Clock,
        executor: Executor,
        outputs: PlayerOutputs,
        first: VideoFrame | None = None,
        av_offset_ms: int = 0,
        seed: int = 0,
    ) -> None:
        face, cursor = open_face(bundle, engine_session), LoopCursor()
        motion = HeadMotion(seed, bundle.fps)
        timeline = Timeline(face, motion)
        context = MediaContext(publisher, batcher, timeline, cursor, motion, clock, executor, bundle.fps, av_offset_ms)
        self.stats, self.clock, self._emit, self._fps = context.stats, clock, outputs.emit, bundle.fps
        self.first: VideoFrame = first or load_first(face.compositor)
        self._timeline, self._cursor = timeline, cursor
        cursor.idle()
        self.renderer = FrameRenderer(context)
        idle = IdleFrames(timeline, cursor, clock, executor, self.first, lambda: publisher.state.watched)
        self._idle = idle
        self.player = Player(context, self.renderer, idle, outputs)
        self._segment: Segment | None = None
        self._watch: FormatDetector | None = None
        self._for_rate: tuple[FormatDetector, Pcm] | None = None  # what is being judged, or will be at once
        self._rate_wake = asyncio.Event()

    @property
    def watch(self) -> FormatDetector | None:
        """The judge of the sender's PCM, once there was some that is judged."""
        return self._watch

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.renderer.run(), name="production")
            group.create_task(self.player.run(), name="playback")
            group.create_task(supervise("rates", self._judge_rates), name="rates")

    def begin(
        self,
        number: int,
        rate: int,
        heard_s: float = 0.0,
        in_s: float = 0.0,
        traceparent: str | None = None,
        *,
        microphone: bool = False,
    ) -> None:
        """Opens segment `number` at `rate` samples per second; ends the one that was open.

        `heard_s` of it were heard before, and its audio does not leave within `in_s`. `traceparent` is its span. That of a
        `microphone` comes decoded, in 10 ms at an even pace: its format is not judged, and it is said as soon as its lips can be.
        """
        self.end()
        stages = SegmentTrace(number, traceparent)
        self._segment = Segment(number, self.renderer.generation, rate, self._fps, heard_s, stages)
        self._segment.not_before = self.clock.now() + in_s
        self._segment.microphone = microphone
        if microphone:
            self._watch = None
        elif self._watch is None or self._watch.rate != rate:
            self._watch = FormatDetector(rate)
        if self._watch is not None:
            self._watch.begin()
        self.renderer.add(self._segment)
        self.player.add(self._segment)

    def cue(self, cues: Sequence[Cue]) -> None:
        """Phonemes of the open segment, in samples at its rate, ahead of their PCM."""
        if self._segment is not None:
            self._segment.add_cues(cues)

    def caption(self, words: Sequence[Word]) -> None:
        """What the open segment says, ahead of its PCM."""
        if self._segment is not None:
            self._segment.script.add(words)

    def push(self, samples: Pcm) -> None:
        """PCM of the open segment, int16 `[n]`. PCM without one (it was cleared) is dropped."""
        self.stats.add("audio_in", samples.nbytes)
        if self._segment is None or not len(samples):
            return
        now = self.clock.now()
        self.stats.add("samples", len(samples))
        self.stats.peak = max(self.stats.peak, int(samples.max()), -int(samples.min()))
        PCM_SAMPLES.inc(len(samples))
        self._segment.stages.reach(FIRST_PCM)
        self._segment.push(samples, now)
        if self._watch is not None:
            self._judge(self._watch, samples, now)
        self.renderer.poke()
        self.player.on_pcm()

    def end(self) -> None:
        """No more PCM for the open segment."""
        if self._segment is not None:
            self._segment.end(self.clock.now())
            self._segment = None
            self.renderer.poke()
            self.player.poke()

    def clear(self) -> Cleared:
        """Barge-in; see `Player.clear`."""
        self._segment = None
        return self.player.clear()

    def rewind(self, position: int) -> None:
        """Nothing after sample `position` of the playout clock was heard; see `Player.rewind`."""
        rests = self.player.rewind(position)
        if self._segment is not None:
            self._segment = rests.get(self._segment, self._segment)

    def show(self, bundle: Bundle, engine_session: EngineSession) -> int:
        """Shows another avatar of the same size and rate, from the first frame on that is not made yet; speech goes on over it.

        Returns the position of that frame, for `shown`.
        """
        face, begin = open_face(bundle, engine_session), self._cursor.free
        self._timeline.show(face, begin)
        self.renderer.on_face(face)
        self._idle.prepare()
        return begin

    def act(self, face: OpenFace, sketches: dict[OpenFace, Sketch], *, loop: bool) -> None:
        """Plays a clip of the avatar that is shown, once or until something else is to be shown; speech goes on over it.

        `face` may be the avatar itself (`home`), which ends what plays. `sketches` are of every face in play, see `faces`.
        """
        entered = enter(self._timeline, self._cursor.free + 1, sketches, face)
        home = face is self._timeline.home
        left = None if loop or home else leave(self._timeline, entered, sketches, face)
        self._timeline.act(face, entered, left)
        if not home:
            self.renderer.on_face(face)
        self._idle.prepare()

    @property
    def home(self) -> OpenFace:
        """The avatar that is shown, whatever plays of it."""
        return self._timeline.home

    @property
    def faces(self) -> set[OpenFace]:
        """What is shown, or will be."""
        self._timeline.forget(self._cursor.shown)
        return self._timeline.faces

    async def shown(self, position: int, within_s: float) -> bool:
        """Waits until the frame at this position is shown, or a later one; False when it is not `within_s`. Cancelling is safe."""
        until, never = self.clock.now() + within_s, asyncio.Event()
        while self._cursor.shown < position:
            if self.clock.now() >= until:
                return False
            await self.clock.wait(never, self.clock.now() + 1 / self._fps)
        return True

    def warn(self, code: str, message: str) -> None:
        """Emits a warning about what the pipeline is fed with."""
        self._emit(WarningEvent(code=code, message=message))

    def _judge(self, watch: FormatDetector, samples: Pcm, now: float) -> None:
        segment = self._segment
        unknown = segment is not None and not segment.cues and not segment.resting  # no voice of ours, no noise
        self._report_format(watch, watch.finding, watch.push(samples, now, speech=unknown))
        if self._for_rate is None and (sound := watch.audio_for_rate()) is not None:
            self._for_rate = watch, sound
            self._rate_wake.set()

    async def _judge_rates(self) -> None:
        """Judges at which rate audio was recorded, five seconds at a time; never returns. Its thread rests more than it works.

        At full speed it would take the interpreter's lock from the event loop for 0.2 s, just as speech begins. Sessions take
        turns.
        """
        while True:
            await self._rate_wake.wait()
            self._rate_wake.clear()
            if self._for_rate is None:
                continue
            watch, sound = self._for_rate
            try:
                with self.clock.working():
                    rate = await in_thread(partial(_rate_of, sound, watch.rate), "rates")
            finally:
                self._for_rate = None
            if watch is self._watch:
                self._report_format(watch, watch.finding, watch.judged(rate))

    def _report_format(self, watch: FormatDetector, before: Finding | None, arisen: Finding | None) -> None:
        if arisen is not None:
            self.stats.fail("audio_in", arisen.text)
            self._emit(
                WarningEvent(code="wrong_format_suspected", message=arisen.text, suspicion=arisen.suspicion.value)
            )
        elif before is not None and watch.finding is None:
            self._emit(WarningEvent(code="format_recovered", message="The PCM looks right now."))


def open_face(bundle: Bundle, engine_session: EngineSession) -> OpenFace:
    """A bundle as the engine readied it."""
    return OpenFace(Compositor(bundle, engine_session.idle), len(bundle), engine_session)


def _rate_of(sound: Pcm, declared: int) -> int | None:
    """See `detect_rate`. Blocks until those that began before are through."""
    with _ONE_JUDGE:
        return detect_rate(shipped_network(), sound, declared, partial(time.sleep, _RATE_REST_S))
