"""A pipeline on a virtual clock: the real stages, a publisher that writes down what left and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import VirtualClock
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.media.player import PlayerOutputs
from musetalk_agent.media.playout import VoiceTimingQueue
from musetalk_agent.media.segment import ROOM_RATE, Caption
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.messages import Event
from musetalk_agent.publishers.base import NullPublisher

RATE = 16_000


@dataclass
class Stand:
    """What a test drives and looks at. Times are virtual seconds."""

    clock: VirtualClock
    pipeline: Pipeline
    pictures: list[tuple[float, bool]] = field(default_factory=list)  # when, white?
    sound: list[tuple[float, Pcm]] = field(default_factory=list)  # when its first sample is heard, block
    events: list[tuple[float, Event]] = field(default_factory=list)
    spoken: list[tuple[float, bool]] = field(default_factory=list)
    said: list[tuple[float, int, float]] = field(
        default_factory=list
    )  # when a block is heard, of which segment, its second
    idle_indices: list[int] = field(default_factory=list)
    corners: list[int] = field(default_factory=list)  # luma of each picture's first pixel

    def whites(self) -> list[float]:
        """Moments at which black turned white."""
        return [
            t for (t, now), (_, before) in zip(self.pictures[1:], self.pictures, strict=False) if now and not before
        ]

    def onsets(self, level: int = 1000) -> list[float]:
        """Moments at which loud sound began after at least 100 ms of quiet, to the sample."""
        found, last = [], -1.0
        for start, block in self.sound:
            for index in np.flatnonzero(np.abs(block) > level):
                at = start + int(index) / ROOM_RATE
                if at - last > 0.1:
                    found.append(at)
                last = at
        return found

    def kinds(self) -> list[str]:
        """Types of the events."""
        return [e.type for _, e in self.events]

    async def live(self, pcm: Pcm, block: int = 640) -> None:
        """Sends PCM at real-time pace: a block comes when its last sample has been spoken."""
        begun = self.clock.now()
        for at in range(0, len(pcm), block):
            part = pcm[at : at + block]
            await self.clock.run(begun + (at + len(part)) / RATE)
            self.pipeline.push(part)

    async def pass_time(self, seconds: float) -> None:
        """Lets virtual time pass."""
        await self.clock.run(self.clock.now() + seconds)


@asynccontextmanager
async def stand(
    executor: ThreadPoolExecutor,
    fps: int = 25,
    engine: PatternEngine | None = None,
    frames: int = 1,
    timings: VoiceTimingQueue | None = None,
    show_caption: Callable[[Caption], None] = lambda _: None,
    bundle: Bundle | None = None,
    see: Callable[[VideoFrame], None] = lambda _: None,
) -> AsyncIterator[Stand]:
    """A running pipeline with the pattern engine, and an idle clip of as many equal frames, or `bundle`; `see` gets each frame."""
    clock = VirtualClock()
    batcher = Batcher(engine or PatternEngine())
    await batcher.start()
    bundle = bundle or pattern_bundle(64, 64, fps)
    if frames > 1:
        repeated = {n: np.repeat(getattr(bundle, n), frames, 0) for n in ("frames", "landmarks", "boxes", "faces")}
        bundle = replace(bundle, **repeated)

    def watch(at: float, frame: VideoFrame) -> None:
        made.pictures.append((at, int(frame.i420[32 * 64 + 32]) > 160))
        made.idle_indices.append(frame.idle_index)
        made.corners.append(int(frame.i420[0]))
        see(frame)

    publisher = NullPublisher(clock, watch, lambda at, block: made.sound.append((at, block)))
    pipeline = Pipeline(
        publisher,
        batcher,
        batcher.engine.open(bundle),
        bundle,
        clock,
        executor,
        PlayerOutputs(
            lambda event: made.events.append((clock.now(), event)),
            lambda speaking: made.spoken.append((clock.now(), speaking)),
            lambda at, segment, second: made.said.append((at, segment, second)),
            timings,
            show_caption,
        ),
    )
    made = Stand(clock, pipeline)
    await publisher.open(pipeline.first, lambda _: None)
    task = asyncio.create_task(pipeline.run())
    try:
        await made.pass_time(0.2)
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await batcher.aclose()


def tone(seconds: float) -> Pcm:
    """A loud 440 Hz tone."""
    return (16_000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def bursts(count: int) -> Pcm:
    """Tone bursts of five frames, twenty frames apart, after 0.48 s of silence."""
    period = np.concatenate([tone(0.2), np.zeros(12_800, np.int16)])
    return np.concatenate([np.zeros(7_680, np.int16), np.tile(period, count)])
