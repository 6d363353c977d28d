"""A card that only takes time: what the host can serve, and how batches form, without one.

python -m tests.bench.simulated            seconds per batch = 1 ms + 1.6 ms a frame, as a large card may have it
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts
from musetalk_agent.engines.musetalk.profiles import BUCKETS, bucket_of
from musetalk_agent.features.whisper_features import WhisperFeatures, rest
from musetalk_agent.media_types import Feature, Patch
from tests.bench.figures import Figure, percentile
from tests.bench.shop import drawn
from tests.bench.talkers import first_lips, patch_latencies, speak_together, speech


class _Actor:
    def __init__(self, artefacts: MuseTalkArtefacts) -> None:
        self.artefacts = artefacts
        self.rest: Feature = rest()

    def fade_to_silence(self, feature: Feature, amount: float) -> Feature:
        return feature

    def idle(self, idle_index: int) -> Patch | None:
        return None

    def missing_idle_patches(self) -> tuple[int, ...]:
        return ()

    def store_idle_patch(self, idle_index: int, patch: Patch) -> None:
        pass

    def close(self) -> None:
        pass


class _Flight:
    def __init__(self, batch: Sequence[PatchRequest], until: float, face: np.ndarray) -> None:
        self._batch, self._until, self._face = batch, until, face

    def wait(self) -> None:
        time.sleep(max(0.0, self._until - time.perf_counter()))

    def patches(self) -> list[Patch | None]:
        return [r.session.artefacts.patch(r.idle_index, self._face, r.blend_weight) for r in self._batch]  # type: ignore[attr-defined]


class TimedEngine:
    """MuseTalk's features, buckets and host work, and a device that is busy for `fixed_s + frame_s · bucket` a batch."""

    name, device, fingerprint, needs_face, fade_out_frames = "simulated", "none", "simulated", True, 4
    batch_sizes = BUCKETS

    def __init__(self, fixed_s: float, frame_s: float) -> None:
        self.features = WhisperFeatures()
        self._fixed_s, self._frame_s = fixed_s, frame_s
        self._free = 0.0
        self._lock = threading.Lock()
        self._artefacts: dict[int, MuseTalkArtefacts] = {}
        self._face = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)

    def prepare(self, bundle: Any, progress: Any = None, settings: Any = None) -> None:
        self._of(bundle)

    def open(self, bundle: Any, settings: Any = None) -> _Actor:
        return _Actor(self._of(bundle))

    def warmup(self) -> None:
        pass

    def capacity(self, fps: int) -> int | None:
        return None

    def launch(self, batch: Sequence[PatchRequest]) -> _Flight:
        begin = max(self._free, time.perf_counter())
        self._free = begin + self._fixed_s + self._frame_s * bucket_of(len(batch), BUCKETS)
        return _Flight(batch, self._free, self._face)

    def close(self) -> None:
        pass

    def _of(self, bundle: Any) -> MuseTalkArtefacts:
        with self._lock:
            if id(bundle) not in self._artefacts:
                self._artefacts[id(bundle)] = MuseTalkArtefacts.of(
                    bundle, lambda faces: np.zeros((len(faces), 8, 32, 32), np.float16)
                )
            return self._artefacts[id(bundle)]


async def figures(fixed_s: float, frame_s: float, seconds: float, sessions: Sequence[int]) -> list[Figure]:
    """Latencies and sessions held with such a card."""
    bundle, pcm = drawn(Path("drawn"), 10), speech(40)
    batcher = Batcher(TimedEngine(fixed_s, frame_s))
    await batcher.start()
    card = f"card simulated: {1000 * fixed_s:.1f} ms + {1000 * frame_s:.1f} ms a frame"
    found = []
    for count in sessions:
        values = await patch_latencies(batcher, bundle, pcm, count, seconds)
        sizes = batcher.statistics().sizes
        note = (
            f"p50 {percentile(values, 50) or 0:.0f}, max {max(values):.0f}; batches so far {dict(sizes or {})}; {card}"
        )
        found.append(Figure(f"PCM to patch, {count} speaking, p95", percentile(values, 95), "ms", note=note))
    for count in sessions:
        held = await speak_together(batcher, bundle, pcm, count, seconds)
        note = (
            f"worst {held.worst_late_ms:.0f} ms late, dropped {held.dropped}, held {held.held}, mute {held.mute}, "
            f"lips p95 {held.latency_p95_ms:.0f} ms, card busy {held.device_busy:.2f}, "
            f"processor {held.processor_busy:.2f} cores; {card}"
        )
        found.append(Figure(f"{count} speaking sessions, 720p, no room", float(held.well), "1 when held", note=note))
    lips = await first_lips(batcher, bundle, pcm, 20)
    found.append(Figure("fast TTS: first PCM to first lips, p95 of 20", percentile(lips, 95), "ms", 120, note=card))
    await batcher.aclose()
    return found


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        prog="simulated", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fixed-ms", type=float, default=1.0)
    parser.add_argument("--frame-ms", type=float, default=1.6)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--sessions", default="1,4,8,16")
    options = parser.parse_args()
    counts = [int(part) for part in options.sessions.split(",")]
    for figure in asyncio.run(figures(options.fixed_ms / 1000, options.frame_ms / 1000, options.seconds, counts)):
        print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
