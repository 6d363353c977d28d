"""What each stage of a frame costs on the processor: measured one frame after the other on the calling thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.idle import IdleCycle
from musetalk_agent.engines.base import Engine, PatchRequest
from musetalk_agent.media import FEATURE_RATE, Feature, Patch, Pcm, frame_start

MakePatch = Callable[[PatchRequest], Patch | None]
_PITCH_HZ, _SYLLABLES_HZ, _HARMONICS = 120.0, 4.0, 25


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Args:
        name: as it is printed.
        times_s: seconds per frame, one value for each measurement.
        flop: floating-point operations per frame, where they were counted.
    """

    name: str
    times_s: list[float]
    flop: int | None = None

    @property
    def mean_ms(self) -> float:
        """Milliseconds per frame."""
        return 1000 * float(np.mean(self.times_s))

    @property
    def p95_ms(self) -> float:
        """Milliseconds per frame that 95 of 100 measurements keep."""
        return 1000 * float(np.percentile(self.times_s, 95))


def host_stages(engine: Engine, bundle: Bundle, frames: int, make: MakePatch, made_by: str) -> list[Stage]:
    """Times features, the patch, composition and conversion of `frames` frames.

    Args:
        engine: opened here for the prepared `bundle`; nobody else may be using it.
        make: makes a patch, as far as it is made on the processor.
        made_by: what the stage of `make` is called.

    The conversion to I420 is measured on its own, on the same pixels and by the compositor's call; `composition` is the rest.
    """
    actor, compositor, cycle = engine.open(bundle), Compositor(bundle), IdleCycle(len(bundle))
    hearing: list[float] = []
    making: list[float] = []
    composing: list[float] = []
    converting: list[float] = []
    try:
        features = _features(engine, bundle.fps, hearing)
        make(PatchRequest(actor, 0, actor.rest))  # the first one reads the clip from disk
        for tick in range(frames):
            request = PatchRequest(actor, cycle.pose(tick), next(features))
            begun = time.perf_counter()
            patch = make(request)
            done = time.perf_counter()
            compositor.compose(request.pose, patch)
            composed = time.perf_counter()
            pixels = np.zeros((2, 2, 3), np.uint8) if patch is None else np.ascontiguousarray(patch.pixels)
            before = time.perf_counter()
            cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420)
            converted = time.perf_counter() - before
            making.append(done - begun)
            composing.append(max(0.0, composed - done - converted))
            converting.append(converted)
    finally:
        actor.close()
    return [
        Stage("features", hearing[-frames:]),
        Stage(made_by, making),
        Stage("composition", composing),
        Stage("I420", converting),
    ]


def _features(engine: Engine, fps: int, times_s: list[float]) -> Iterator[Feature]:
    """Features of an endless buzz that opens and closes the mouth; the time of each goes to `times_s`."""
    stream, frame = engine.features.stream(fps), 0
    while True:
        sound = _buzz(frame_start(frame, fps), frame_start(frame + 1, fps))
        begun = time.perf_counter()
        ready = stream.push(sound)
        times_s.append(time.perf_counter() - begun)
        frame += 1
        yield from ready


def _buzz(start: int, end: int) -> Pcm:
    """Samples `[start, end)` of a voice-like tone at 16 kHz."""
    t = np.arange(start, end) / FEATURE_RATE
    voice = sum(np.sin(2 * np.pi * _PITCH_HZ * k * t) / k for k in range(1, _HARMONICS))
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * _SYLLABLES_HZ * t)
    return (6_000 * swell * voice).astype(np.int16)
