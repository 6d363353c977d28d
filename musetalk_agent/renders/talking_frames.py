"""The frames of a film, any stretch of them: features → engine → compositor, each stage as fast as it goes.

A room's pipeline paces; a film does not. Frame `k` lies on position `k` of the idle clip and has the lips of its own audio,
whichever stretch it is made in, so stretches that were made apart, by different workers, join without a jump.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.head_motion import HeadMotion
from musetalk_agent.compose.layers import laid
from musetalk_agent.compose.timeline import ShownFrame, Timeline
from musetalk_agent.engines.batcher import Batcher, Result
from musetalk_agent.engines.interface import EngineSession, PatchRequest
from musetalk_agent.features.av_offset import OffsetGate
from musetalk_agent.features.extractor import FeatureExtractor, SpeechGate
from musetalk_agent.features.stress import StressMeter
from musetalk_agent.media.pipeline import open_face
from musetalk_agent.media.renderer import OPENING_FRAMES, OpenFace
from musetalk_agent.media_types import FEATURE_RATE, Cue, Feature, Patch, Pcm, VideoFrame, frame_start
from musetalk_agent.renders.film_actions import FilmAction, film_timeline

LEAD_S = 2
"""Sound before a stretch that is heard first: the detector of speech and the features know what came before as if they had heard it
all. Their own memory is 0.5 s (`extractor.HOLD_S`) and 0.4 s."""
LEAD_FRAMES = 5
"""Frames before a stretch that the engine makes first, where it smooths from frame to frame."""
_BATCHES_AHEAD = 3
_AUDIO_STEP = FEATURE_RATE // 5
_LATER_S = 3600.0  # a film's frames come after anything that is live


class FramesFailed(Exception):
    """The engine could not make a frame; the message says why."""


Mouth = tuple[Feature, float] | None
"""A feature and its blend weight; None where the idle frame is shown."""
Wanted = tuple[EngineSession, int, Mouth, int]
"""A patch: the avatar at the engine, the index of its clip, the mouth, and the place in the film."""


def mouths(decided: Iterable[Feature | None], session: EngineSession, closing_frames: int) -> Iterator[Mouth]:
    """What each frame shows: speech takes the mouth over in three frames, and gives it back in `closing_frames`."""
    feature, weight = session.rest, 0.0
    closing: tuple[Feature, float] | None = None
    step = 0
    for each in decided:
        if each is not None:
            feature, weight, closing = each, min(1.0, weight + 1 / OPENING_FRAMES), None
            yield feature, weight
            continue
        if closing is None:
            closing, step = (feature, weight), 0
        step += 1
        if closing[1] <= 0 or step > closing_frames:
            feature, weight = session.rest, 0.0
            yield None
            continue
        feature = session.fade_to_silence(closing[0], min(1.0, 2 * step / closing_frames))
        weight = closing[1] * (1 - step / (closing_frames + 1))
        yield feature, weight


@dataclass(frozen=True, slots=True)
class Talker:
    """An avatar that an engine has opened.

    Args:
        batcher: the engine, which makes patches on its own thread.
        session: the avatar at the engine.
        bundle: its frames.
        av_offset_ms: how much later than the voice the lips move.
        seed: of the motion of a still picture; the parts of one film have one.
        actions: clips that are played meanwhile.
    """

    batcher: Batcher
    session: EngineSession
    bundle: Bundle
    av_offset_ms: int = 0
    seed: int = 0
    actions: tuple[FilmAction, ...] = ()

    async def close_idle_mouths(self) -> None:
        """Makes what the engine wants over idle frames. Call it once, before `frames`. Raises FramesFailed."""
        clips = {action.face.engine_session for action in self.actions if action.face is not None}
        for session in (self.session, *clips):
            for index in session.missing_idle_patches():
                patch = await self._made(self.batcher.submit(PatchRequest(session, index, session.rest), _LATER_S))
                if patch is not None:
                    session.store_idle_patch(index, patch)

    async def frames(
        self, stretch: range, read: Callable[[int, int], Pcm], cues: Iterable[Cue] = ()
    ) -> AsyncGenerator[VideoFrame, None]:
        """The frames of `stretch`, in order, a few made ahead: with alpha where the background is transparent. Closing the iterator
        drops what was begun.

        Args:
            stretch: numbers of frames from the film's beginning.
            read: int16 mono 16 kHz `[n]` of the sound from a sample to another; fewer where it ends. Runs in a thread.
            cues: phonemes known beforehand, in samples at 16 kHz of the film.

        Raises:
            FramesFailed: the engine could not make one of them, or nothing fit to be shown.
        """
        fps, engine = self.bundle.fps, self.batcher.engine
        meter = StressMeter(fps)
        decided = await asyncio.to_thread(
            decide, engine.features, fps, self.av_offset_ms, stretch, read, list(cues), meter
        )
        shown = list(mouths(decided, self.session, engine.fade_out_frames))
        first = max(0, stretch.start - LEAD_FRAMES)
        begin = first_heard(stretch.start, fps)
        motion = HeadMotion(self.seed, fps)
        for position, feature in enumerate(decided, begin):
            stress = meter.take()
            if feature is not None:
                motion.speak(position, stress)
        timeline = film_timeline(open_face(self.bundle, self.session), motion, self.actions)
        await asyncio.to_thread(self._find_flows, timeline, range(first, stretch.stop))
        wanted = _wanted(timeline, ((frame, shown[frame - begin]) for frame in range(first, stretch.stop)))
        async with aclosing(self.patches(wanted)) as patches:
            for frame in range(first, stretch.stop):
                look, patch = timeline.at(frame), await anext(patches)
                leaving = None if look.leaving is None else await anext(patches)
                if frame >= stretch.start:
                    yield await asyncio.to_thread(_composed, look, patch, leaving)

    def _find_flows(self, timeline: Timeline[OpenFace], frames: range) -> None:
        """Has each passage of these frames look at its own first frame, as in the part of the film in which it begins. Blocks."""
        passages = [passage for action in self.actions for passage in (action.enter, action.leave) if passage]
        for passage in passages:
            if passage.begin < frames.stop and passage.begin + passage.fade > frames.start:
                look = timeline.at(passage.begin)
                if look.leaving is not None:
                    _composed(look, None, None)

    async def patches(self, wanted: Iterable[Wanted]) -> AsyncGenerator[Patch | None, None]:
        """What is wanted, in order, a few made ahead; None where no patch is needed.

        Closing the iterator drops what was begun. Raises FramesFailed.
        """
        left = iter(wanted)
        ahead: deque[Result | None] = deque()
        most = _BATCHES_AHEAD * max(self.batcher.engine.batch_sizes)
        try:
            while True:
                while len(ahead) < most and (one := next(left, None)) is not None:
                    ahead.append(self._submit(*one))
                if not ahead:
                    return
                result = ahead.popleft()
                yield None if result is None else await self._made(result)
        finally:
            for result in ahead:
                if result is not None:
                    result.cancel()

    def _submit(self, session: EngineSession, idle_index: int, mouth: Mouth, frame: int) -> Result | None:
        if mouth is None:
            return None
        return self.batcher.submit(PatchRequest(session, idle_index, *mouth), _LATER_S + frame)

    @staticmethod
    async def _made(result: Result) -> Patch | None:
        try:
            return await result
        except asyncio.CancelledError:
            raise
        except Exception as error:  # an engine may raise anything: the film fails with its words
            raise FramesFailed(f"The engine failed on a frame ({type(error).__name__}: {error}).") from error


def _wanted(timeline: Timeline[OpenFace], mouths: Iterable[tuple[int, Mouth]]) -> Iterator[Wanted]:
    """A patch for every frame of the film, followed by one for the clip that goes away meanwhile."""
    for frame, mouth in mouths:
        look = timeline.at(frame)
        yield look.face.engine_session, look.idle_index, mouth, frame
        if (old := look.leaving) is not None:
            yield old.face.engine_session, old.idle_index, mouth, frame


def _composed(look: ShownFrame[OpenFace], patch: Patch | None, leaving: Patch | None) -> VideoFrame:
    """A frame on its background; one that has none keeps its alpha."""
    frame = look.face.compositor.compose(look.idle_index, patch, pose=look.pose)
    if (old := look.leaving) is not None:
        frame = old.mixed(old.face.compositor.compose(old.idle_index, leaving, pose=old.pose), frame, look)
    return frame if frame.behind is None else laid(frame)


def decide(
    features: FeatureExtractor,
    fps: int,
    av_offset_ms: int,
    stretch: range,
    read: Callable[[int, int], Pcm],
    cues: list[Cue],
    meter: StressMeter | None = None,
) -> list[Feature | None]:
    """One entry for each frame from `first_heard` to the stretch's last: a feature, or None where the mouth rests.

    Arguments are those of `Talker` and `Talker.frames`; `meter` hears the same. Blocks: it reads and computes.
    """
    heard = first_heard(stretch.start, fps)
    origin = frame_start(heard, fps)
    ahead = FEATURE_RATE * (features.lookahead_ms + max(0, -av_offset_ms)) // 1000 + FEATURE_RATE // 10
    gate = OffsetGate(SpeechGate(features, fps), fps, av_offset_ms)
    gate.cue([replace(c, start=max(0, c.start - origin), end=c.end - origin) for c in cues if c.end > origin])
    count = stretch.stop - heard
    made: list[Feature | None] = []
    at, end = origin, frame_start(stretch.stop, fps) + ahead
    while at < end and len(made) < count:
        samples = read(at, min(end, at + _AUDIO_STEP))
        at += len(samples)
        if not len(samples):
            break
        made += gate.push(samples)
        if meter is not None:
            meter.push(samples)
    made += gate.flush()
    return (made + [None] * count)[:count]


def first_heard(frame: int, fps: int) -> int:
    """The frame from which on the sound is heard for a stretch that begins at `frame`; it begins at a whole sample."""
    return max(0, frame // fps - LEAD_S) * fps
