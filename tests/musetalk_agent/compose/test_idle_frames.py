"""Idle frames are made in worker threads, one beat ahead; a busy pool delays the idle clip and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import VirtualClock
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.head_motion import HeadMotion
from musetalk_agent.compose.idle import LoopCursor
from musetalk_agent.compose.idle_frames import IdleFrames, load_idle
from musetalk_agent.compose.timeline import ShownFace, Timeline
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.pattern import PatternEngine, PatternSession, pattern_bundle
from musetalk_agent.media_types import Patch
from musetalk_agent.protocol.avatar_settings import DEFAULTS, AvatarSettings
from tests.musetalk_agent.stand import stand, tone

STILL = HeadMotion(0, 25)


class QuietActor(PatternSession):
    """Lies a patch over every idle frame, as an engine does that closes the mouth of a clip, and writes down in which thread."""

    threads: set[int]
    made = 0

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.threads = set()

    def idle(self, idle_index: int) -> Patch | None:
        self.threads.add(threading.get_ident())
        self.made += 1
        return self.black


class QuietEngine(PatternEngine):
    """Makes `QuietActor`s."""

    engine_session: QuietActor

    def open(self, bundle: Bundle, settings: AvatarSettings = DEFAULTS) -> PatternSession:
        self.session = QuietActor(bundle)
        return self.session


async def test_no_frame_is_composed_on_the_event_loop(executor: ThreadPoolExecutor) -> None:
    engine = QuietEngine()
    async with stand(executor, engine=engine, frames=5) as made:
        engine.session.threads.clear()  # the first frame of all, which `Factory` loads in a thread
        await made.pass_time(1)
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(0.4))
        await made.pass_time(0.2)
        made.pipeline.clear()
        await made.pass_time(1)
        assert engine.session.threads and threading.get_ident() not in engine.session.threads
        assert made.pipeline.player.report()["idle_late"] == 0
    idle = made.idle_indices[:20]
    assert idle == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3], "no frame twice, none left out"
    beats = np.diff([at for at, _ in made.pictures])
    assert np.allclose(beats, 0.04)


async def test_no_idle_frame_is_made_while_speech_goes_on(executor: ThreadPoolExecutor) -> None:
    engine = QuietEngine()
    async with stand(executor, engine=engine, frames=5) as made:
        made.pipeline.begin(1, 16_000)
        await made.live(tone(0.6))
        before = engine.session.made
        await made.live(tone(1))
        assert engine.session.made == before
        made.pipeline.end()
        await made.pass_time(1)
        report = made.pipeline.player.report()
        assert (report["spoken"], report["idle_late"], report["held"]) == (40, 0, 0)
        assert engine.session.made > before + 10


async def test_a_busy_pool_repeats_a_frame_and_the_clip_goes_on_where_it_was() -> None:
    bundle = pattern_bundle(64, 64, 25)
    frames = np.repeat(bundle.frames, 4, 0)
    compositor = Compositor(Bundle(**{**vars(bundle), "frames": frames}))
    clock, cursor = VirtualClock(), LoopCursor()
    gate = threading.Event()
    with ThreadPoolExecutor(1) as busy:
        first = compositor.idle(cursor.idle())
        idle = IdleFrames(Timeline(ShownFace(compositor, 4), STILL), cursor, clock, busy, first)
        busy.submit(gate.wait)
        taken = [idle.take(), idle.take()]
        gate.set()
        assert taken == [None, None] and idle.late == 2
        await clock.run(clock.now() + 0.01)
        shown: list[int] = []
        for _ in range(6):
            frame = idle.take()
            assert frame is not None
            shown.append(frame.idle_index)
            await clock.run(clock.now() + 0.01)
    assert shown == [1, 2, 3, 2, 1, 0]


def test_a_loaded_frame_is_no_view_of_the_clip_s_file() -> None:
    bundle = pattern_bundle(64, 48, 25)
    bundle.frames.flags.writeable = False  # as of a bundle on the disk
    loaded = load_idle(Compositor(bundle), 0).i420
    assert np.array_equal(loaded, bundle.frames[0].reshape(-1)) and not np.shares_memory(loaded, bundle.frames)
    assert loaded.flags.writeable, "the event loop would copy it for the SDK"


async def test_what_making_a_frame_raises_reaches_the_session() -> None:
    def broken(idle_index: int) -> Patch | None:
        raise OSError("the clip's file is gone")

    bundle = pattern_bundle(64, 64, 25)
    frames = np.repeat(bundle.frames, 2, 0)
    clock, cursor = VirtualClock(), LoopCursor()
    plain = Compositor(bundle).idle(cursor.idle())
    with ThreadPoolExecutor(1) as pool:
        compositor = Compositor(Bundle(**{**vars(bundle), "frames": frames}), broken)
        idle = IdleFrames(Timeline(ShownFace(compositor, 2), STILL), cursor, clock, pool, plain)
        idle.prepare()
        await clock.run(0.01)
        with pytest.raises(OSError, match="is gone"):
            idle.take()


class Failing(PatternEngine):
    """Fails on every frame, and only on frames."""

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        raise RuntimeError("lips on fire")


async def test_frames_that_fail_count_neither_as_shown_nor_as_quick(executor: ThreadPoolExecutor) -> None:
    async with stand(executor, engine=Failing(), frames=3) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(1))
        made.pipeline.end()
        await made.pass_time(2)
        await asyncio.sleep(0)
        report = made.pipeline.player.report()
        assert (report["spoken"], report["failed"]) == (0, 25)
        assert report["lip_latency_p50_ms"] is None and report["skew_ms"] is None
        assert made.pipeline.player.recent.degraded(made.clock.now())
    assert {s.stage: s.count for s in made.pipeline.stats.report()}["patches"] == 0


class TalkingActor(QuietActor):
    """Wants its idle frames made, as an engine does whose clip talks."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.kept: dict[int, Patch] = {}
        self.idle_indices = len(bundle)

    def missing_idle_patches(self) -> tuple[int, ...]:
        return tuple(idle_index for idle_index in range(self.idle_indices) if idle_index not in self.kept)

    def store_idle_patch(self, idle_index: int, patch: Patch) -> None:
        self.kept[idle_index] = patch


class TalkingEngine(PatternEngine):
    """Makes `TalkingActor`s; fails from a call on."""

    def __init__(self, fails_from: int = 1000) -> None:
        super().__init__()
        self.calls, self.fails_from = 0, fails_from

    def open(self, bundle: Bundle, settings: AvatarSettings = DEFAULTS) -> PatternSession:
        self.session = TalkingActor(bundle)
        return self.session

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        self.calls += len(batch)
        if self.calls > self.fails_from:
            raise RuntimeError("no mouth today")
        assert all(float(request.feature[0]) == 0 and request.blend_weight == 1 for request in batch)
        return super().infer(batch)


async def test_idle_mouths_are_made_once_by_the_engine(executor: ThreadPoolExecutor) -> None:
    engine = TalkingEngine()
    async with stand(executor, engine=engine, frames=5) as made:
        await made.pass_time(1)
        assert sorted(engine.session.kept) == [0, 1, 2, 3, 4] and engine.calls == 5
        await made.pass_time(1)
    assert engine.calls == 5


async def test_an_engine_that_cannot_make_them_leaves_the_clip_as_it_is(executor: ThreadPoolExecutor) -> None:
    engine = TalkingEngine(fails_from=2)
    async with stand(executor, engine=engine, frames=5) as made:
        await made.pass_time(2)
        assert len(engine.session.kept) == 2 and engine.calls == 3
        assert len(made.pictures) >= 45  # the session goes on
