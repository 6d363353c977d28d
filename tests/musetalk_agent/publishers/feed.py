"""Feeds a sink at the pace of the clock, as a session does: sound 60 ms before it is heard, pictures when they are due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np

from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.publishers.stream.sink import StreamSink

FPS = 25
BLOCK = 1920
AHEAD_S = 0.06


def picture(luma: int, size: int = 256) -> VideoFrame:
    planes = np.full(size * size * 3 // 2, 128, np.uint8)
    planes[: size * size] = luma
    return VideoFrame(planes, size, size, 0)


def speech(seconds: float, seed: int = 5) -> Pcm:
    """Noise of the band of speech with an envelope: every second is unlike every other."""
    rng = np.random.default_rng(seed)
    wave = np.convolve(rng.normal(0, 1, int(seconds * 48_000)), np.hanning(48) / 24, "same")
    knots = np.arange(0, len(wave) + 4800, 4800)
    envelope = np.interp(np.arange(len(wave)), knots, rng.random(len(knots)))
    return np.clip(wave * envelope * 12_000, -32_000, 32_000).astype(np.int16)


async def feed(
    sink: StreamSink,
    frames: int,
    sound: Pcm | None,
    look: Callable[[int], VideoFrame],
    step: Callable[[int], object] = lambda frame: None,
) -> float:
    """Plays `frames` frames with `sound` from the first on; returns when the first was seen. `step` is called once a frame."""
    start = time.monotonic()
    for frame in range(frames):
        at = start + frame / FPS
        block = None if sound is None else sound[frame * BLOCK : (frame + 1) * BLOCK]
        if block is not None and len(block):
            sink.offer_audio(at + AHEAD_S, block)
        sink.offer_video(at, look(frame))
        outcome = step(frame)
        if asyncio.iscoroutine(outcome):
            await outcome
        await asyncio.sleep(max(0.0, at + 1 / FPS - time.monotonic()))
    return start
