"""Sessions that speak in real time, for measuring an engine under load: one stage alone, and whole pipelines."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import MonotonicClock
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.media.player import PlayerOutputs
from musetalk_agent.media_types import Pcm, VideoFrame, frame_start
from musetalk_agent.publishers.base import NullPublisher

RATE = 16_000
SPEECH = Path(__file__).resolve().parents[1] / "data" / "spoken_joe.npz"
BLOCK = 320  # samples: 20 ms, as telephony and TTS services send
LATE_MS = 40.0
"""A picture later than this behind its sound's moment is seen (the issue's bar)."""


def speech(seconds: float) -> Pcm:
    """The neural voice over and over, int16 mono 16 kHz; `tests.bench.engine.speech` needs more than a lent machine has."""
    with np.load(SPEECH, allow_pickle=False) as stored:
        coded = stored["mulaw"] / 127.5 - 1
    pcm: Pcm = (np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255 * 32767).astype(np.int16)
    return np.tile(pcm, 1 + int(seconds * RATE / len(pcm)))


def media_threads() -> ThreadPoolExecutor:
    """As many as the agent's factory makes."""
    return ThreadPoolExecutor(min(4, (os.cpu_count() or 1) + 1), "media")


async def patch_latencies(batcher: Batcher, bundle: Bundle, pcm: Pcm, sessions: int, seconds: float) -> list[float]:
    """Milliseconds from the moment a frame's last sample was spoken to its patch, for `sessions` that all speak."""
    engine_sessions = [await asyncio.to_thread(batcher.engine.open, bundle) for _ in range(sessions)]
    found: list[float] = []
    with media_threads() as executor:
        talks = [
            _talk(
                batcher,
                engine_session,
                bundle,
                pcm[number * 4_000 :],
                seconds,
                number / sessions / bundle.fps,
                executor,
                found,
            )
            for number, engine_session in enumerate(engine_sessions)
        ]
        await asyncio.gather(*talks)
    for engine_session in engine_sessions:
        engine_session.close()
    return found


async def _talk(
    batcher: Batcher,
    engine_session: object,
    bundle: Bundle,
    pcm: Pcm,
    seconds: float,
    offset_s: float,
    executor: Executor,
    found: list[float],
) -> None:
    loop, stream = asyncio.get_running_loop(), batcher.engine.features.stream(bundle.fps)
    await asyncio.sleep(offset_s)
    begun, frame, pending = loop.time(), 0, []

    async def timed(request: PatchRequest, spoken: float) -> None:
        if await batcher.submit(request, loop.time() + 1 / bundle.fps) is not None:
            found.append(1000 * (loop.time() - spoken))

    for at in range(0, min(len(pcm), int(seconds * RATE)) - BLOCK, BLOCK):
        await asyncio.sleep(max(0.0, begun + (at + BLOCK) / RATE - loop.time()))
        for feature in await loop.run_in_executor(executor, stream.push, pcm[at : at + BLOCK]):
            request = PatchRequest(engine_session, frame % len(bundle), feature)  # type: ignore[arg-type]
            spoken = begun + frame_start(frame + 1, bundle.fps) / RATE
            pending.append(asyncio.create_task(timed(request, spoken)))
            frame += 1
    await asyncio.gather(*pending)


@dataclass(frozen=True)
class Held:
    """How `sessions` speaking sessions went.

    Args:
        worst_late_ms: of the pictures of the last ten seconds of each.
        dropped, held, underruns, mute: pictures too late to show, pictures shown twice for want of the next, segments that ran
            dry, segments that began without lips; over all sessions.
        latency_p95_ms: from a frame's last PCM to its lips leaving.
        device_busy, processor_busy: shares of the wall time; the processor's is of one core.
    """

    sessions: int
    worst_late_ms: float
    dropped: int
    held: int
    underruns: int
    mute: int
    latency_p95_ms: float
    device_busy: float
    processor_busy: float

    @property
    def well(self) -> bool:
        """No frame late by more than the bar, none missing. A picture held is one that its successor replaced late, or dropped."""
        return self.worst_late_ms <= LATE_MS and self.dropped == self.underruns == self.mute == 0


async def speak_together(batcher: Batcher, bundle: Bundle, pcm: Pcm, sessions: int, seconds: float) -> Held:
    """Whole pipelines with null publishers, PCM at real-time pace, offset against each other within a frame."""
    pipelines: list[Pipeline] = []
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(media_threads())
        for _ in range(sessions):
            pipelines += [await stack.enter_async_context(running(batcher, bundle, executor))]
        busy, cpu, begun = batcher.statistics().busy_s, time.process_time(), time.perf_counter()
        await asyncio.gather(
            *(_feed(p, pcm[n * 4_000 :], seconds, n / sessions / bundle.fps) for n, p in enumerate(pipelines))
        )
        await asyncio.sleep(0.5)
        wall = time.perf_counter() - begun
        reports = [pipeline.player.report() for pipeline in pipelines]
        late = [ms for pipeline in pipelines for ms in pipeline.player.statistics.late_ms]
        lips = [ms for pipeline in pipelines for ms in pipeline.player.statistics.lip_latency_ms]
    totals = {name: sum(int(r[name] or 0) for r in reports) for name in ("dropped", "held", "underruns")}
    return Held(
        sessions,
        max(late, default=float("inf")),
        totals["dropped"],
        totals["held"],
        totals["underruns"],
        sum(int(r["began_without_lips"] or 0) for r in reports),
        float(np.percentile(lips, 95)) if lips else float("inf"),
        (batcher.statistics().busy_s - busy) / wall,
        (time.process_time() - cpu) / wall,
    )


async def _feed(pipeline: Pipeline, pcm: Pcm, seconds: float, offset_s: float) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(offset_s)
    pipeline.begin(1, RATE)
    begun = loop.time()
    for at in range(0, min(len(pcm), int(seconds * RATE)) - BLOCK, BLOCK):
        await asyncio.sleep(max(0.0, begun + (at + BLOCK) / RATE - loop.time()))
        pipeline.push(pcm[at : at + BLOCK])
    pipeline.end()


@asynccontextmanager
async def running(
    batcher: Batcher, bundle: Bundle, executor: Executor, seen: list[float] | None = None
) -> AsyncIterator[Pipeline]:
    """A pipeline to nowhere; `seen` gets the times of its lip pictures."""
    clock = MonotonicClock()

    def watch(at: float, frame: VideoFrame) -> None:
        if seen is not None and frame.spoken and frame.tag and frame.tag.segment:
            seen.append(at)

    publisher = NullPublisher(clock, watch)
    engine_session = await asyncio.to_thread(batcher.engine.open, bundle)
    pipeline = Pipeline(
        publisher,
        batcher,
        engine_session,
        bundle,
        clock,
        executor,
        PlayerOutputs(lambda _: None, lambda _: None, lambda *_: None),
    )
    await publisher.open(pipeline.first, lambda _: None)
    task = asyncio.create_task(pipeline.run())
    try:
        yield pipeline
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        engine_session.close()
        if isinstance(ended, Exception):  # not the cancelling: it died before
            raise ended


async def first_lips(batcher: Batcher, bundle: Bundle, pcm: Pcm, times: int) -> list[float]:
    """Milliseconds from the first PCM of a sender far faster than real time to the first lip picture leaving."""
    seen: list[float] = []
    found: list[float] = []
    loop = asyncio.get_running_loop()
    with media_threads() as executor:
        async with running(batcher, bundle, executor, seen) as pipeline:
            await asyncio.sleep(0.3)
            for number in range(1, times + 1):
                begun, count = loop.time(), len(seen)
                pipeline.begin(number, RATE)
                pipeline.push(pcm[: 2 * RATE])
                while len(seen) == count and loop.time() - begun < 5:  # noqa: ASYNC110 - one millisecond is the grain
                    await asyncio.sleep(0.001)
                found.append(1000 * (loop.time() - begun))
                pipeline.clear()
                await asyncio.sleep(0.3)
    return found
