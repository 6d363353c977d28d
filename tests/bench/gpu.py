"""`make bench-gpu`: MuseTalk on a CUDA card with random weights of full size, one JSON line a figure, beside upstream's way.

    python -m tests.bench.gpu                        everything, on cuda:0
    python -m tests.bench.gpu --only throughput,hold --profile fast
    python -m tests.bench.gpu --tiny --device cpu    the same code on the processor with a small network: proves the bench only

A figure that fails becomes a line with `"value": null` and the reason; the others go on. Exit code 3 where there is no card.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.card import card, exact, memory, variants
from tests.bench.card_faults import faults
from tests.bench.card_rooms import rooms
from tests.bench.counted import counted
from tests.bench.figures import Figure, percentile
from tests.bench.films import films
from tests.bench.shop import Bench, prepared, why
from tests.bench.starting import child, startup

LIMIT_MS = 0.88
"""What an H200 cannot go below per frame: 697 GFLOP at 790 TFLOP/s."""
NO_CARD = 3


async def throughput(bench: Bench) -> list[Figure]:
    """Frames per second of every profile through the batcher, faces copied back and patches cut; beside upstream's way."""
    found: list[Figure] = []
    ours: dict[str, float] = {}
    for profile in dict.fromkeys((bench.profile, "quality", "lower", "fast")):
        batcher = await bench.batcher(profile)
        ours[profile] = await _pace(bench, batcher)
        pace = batcher.engine.pace.seconds
        note = "ms a batch by size: " + ", ".join(f"{size}: {1000 * s:.2f}" for size, s in pace.items())
        bar = 500.0 if profile == "quality" else None
        found.append(Figure(f"frames per second, {profile}", ours[profile], "frames/s", bar, at_least=True, note=note))
        if profile != bench.profile:
            await bench.drop(profile)
    found.append(
        Figure(
            "time of a frame, quality, of the 0.88 ms an H200 needs at least",
            100 * LIMIT_MS * ours["quality"] / 1000,
            "% of the limit",
            50,
            at_least=True,
        )
    )
    return found + await asyncio.to_thread(_against_upstream, bench, ours["quality"], await _artefacts(bench))


async def _artefacts(bench: Bench) -> tuple[Any, Any]:
    engine = (await bench.batcher()).engine
    bundle = await bench.bundle(engine)
    engine_session = engine.open(bundle)
    try:
        return bundle, engine_session.avatar.artefacts
    finally:
        engine_session.close()


async def _pace(bench: Bench, batcher: Any) -> float:
    """Whole queues of frames of eight sessions, for a few seconds."""
    from musetalk_agent.engines.interface import PatchRequest

    engine = batcher.engine
    bundle = await bench.bundle(engine)
    engine_sessions = [engine.open(bundle) for _ in range(8)]
    rest = engine_sessions[0].rest
    rounds = max(1, min(96, int(engine.pace.frames_per_second / 8)))
    made, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < bench.seconds / 3:
        jobs = [
            batcher.submit(PatchRequest(engine_session, k % len(bundle), rest), k)
            for k in range(rounds)
            for engine_session in engine_sessions
        ]
        await asyncio.gather(*jobs)
        made += len(jobs)
    spent = time.perf_counter() - begun
    for engine_session in engine_sessions:
        engine_session.close()
    return made / spent


def _against_upstream(bench: Bench, ours: float, avatar: tuple[Any, Any]) -> list[Figure]:
    import torch

    from tests.bench.upstream import UPSTREAM_BATCH, Upstream

    cpu = bench.device == "cpu"
    baseline = Upstream(bench.models, torch.device(bench.device), torch.float32 if cpu else torch.float16)
    found = []
    for batch in (1, 4, UPSTREAM_BATCH):
        theirs = baseline.frames_per_second(*avatar, batch, bench.seconds / 4)
        found.append(Figure(f"upstream's way, batch of {batch} per session", theirs, "frames/s"))
        found.append(
            Figure(
                f"quality against upstream's way in batches of {batch}",
                ours / theirs,
                "times as fast",
                4,
                at_least=True,
            )
        )
    return found


async def latency(bench: Bench) -> list[Figure]:
    """PCM at real-time pace to patches, one session and many."""
    from tests.bench.talkers import patch_latencies, speech

    batcher = await bench.batcher()
    bundle = await bench.bundle(batcher.engine)
    found = []
    for sessions, bar in ((1, 170.0), (16, 200.0)):
        if bench.tiny and sessions > 1:
            continue
        values = await patch_latencies(batcher, bundle, speech(40), sessions, bench.seconds)
        note = f"p50 {percentile(values, 50) or 0:.1f}, max {max(values):.1f}, {len(values)} frames, 80 ms of it look-ahead"
        found.append(
            Figure(f"real-time PCM to patch, {sessions} speaking, p95", percentile(values, 95), "ms", bar, note=note)
        )
    return found


async def hold(bench: Bench) -> list[Figure]:
    """Speaking sessions held by the whole agent, without a room; the limit, and what set it."""
    from tests.bench.talkers import speak_together, speech

    batcher = await bench.batcher()
    bundle = await bench.bundle(batcher.engine)
    best, first_bad, found = 0, None, []
    for sessions in (1, 2) if bench.tiny else (8, 16, 20, 24, 28, 32, 40, 48):
        held = await speak_together(batcher, bundle, speech(40), sessions, bench.seconds)
        note = (
            f"worst picture {held.worst_late_ms:.1f} ms late, dropped {held.dropped}, held {held.held}, "
            f"underruns {held.underruns}, lips p95 {held.latency_p95_ms:.0f} ms, card busy {held.device_busy:.2f}, "
            f"processor {held.processor_busy:.2f} cores"
        )
        found.append(Figure(f"{sessions} speaking sessions at 25 fps", float(held.well), "1 when held", note=note))
        if not held.well:
            first_bad = note
            break
        best = sessions
    promised = batcher.engine.capacity(25)
    note = f"admission promises {promised}; then: {first_bad or 'not tried further'}; {os.cpu_count()} cores"
    bar = 16 if best else None
    return [*found, Figure(f"speaking sessions held, {bench.profile}", best, "sessions", bar, at_least=True, note=note)]


async def lips(bench: Bench) -> list[Figure]:
    """First PCM of a fast TTS to the first lip picture leaving the pipeline, warm."""
    from tests.bench.talkers import first_lips, speech

    batcher = await bench.batcher()
    values = await first_lips(batcher, await bench.bundle(batcher.engine), speech(40), 1 if bench.tiny else 20)
    note = f"median {np.median(values):.0f} of {len(values)}"
    return [Figure("fast TTS: first PCM to first lips, p95", percentile(values, 95), "ms", 120, note=note)]


async def preparation(bench: Bench) -> list[Figure]:
    """100 frames of 720p."""
    frames = 8 if bench.tiny else 100
    batcher = await bench.batcher()
    _, whole, engine_s = await prepared(bench.folder / "preparation", batcher.engine, frames)
    found = [Figure(f"preparation, {frames} frames of 720p: boxes, latents and masks", engine_s, "s")]
    if whole is not None:
        note = f"decoding, landmarks and frames {whole - engine_s:.2f} s, boxes, latents and masks {engine_s:.2f} s"
        found.append(Figure(f"preparation, {frames} frames of 720p", whole, "s", 5, note=note))
    return found


FIGURES: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    "counted": counted,
    "card": card,
    "throughput": throughput,
    "exact": exact,
    "latency": latency,
    "lips": lips,
    "hold": hold,
    "preparation": preparation,
    "memory": memory,
    "startup": startup,
    "variants": variants,
    "rooms": rooms,
    "faults": faults,
    "films": films,
}


def main() -> int:
    """Runs the figures in order."""
    parser = argparse.ArgumentParser(
        prog="bench-gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help=f"names separated by commas: {', '.join(FIGURES)}")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="a small network instead of the full one")
    parser.add_argument("--profile", default="quality", choices=("quality", "lower", "fast"))
    parser.add_argument("--seconds", type=float, default=12, help="length of each measurement (default 12)")
    parser.add_argument(
        "--models",
        type=Path,
        default=None,
        help="models folder; random weights are written there when it does not exist (default: one for this run)",
    )
    parser.add_argument("--faces", type=Path, default=None, help="a folder of pictures and clips to be filmed")
    parser.add_argument("--films", type=Path, default=Path("build/films"), help="where the films go")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device != "cpu" and not _has_card():
        print("bench-gpu: PyTorch sees no CUDA device here; these figures are not measured.", file=sys.stderr)
        return NO_CARD
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        models = options.models or Path(folder) / "models"
        if not models.is_dir():
            _made(models, tiny=options.tiny)
        bench = Bench(models, options.device, options.tiny, options.profile, options.seconds, Path(folder))
        bench.faces, bench.films, bench.weights = options.faces, options.films, _weights()
        if options.child:
            return child(bench)
        return asyncio.run(_all(bench, [name for name in options.only.split(",") if name] or list(FIGURES)))


async def _all(bench: Bench, names: list[str]) -> int:
    failed = 0
    for name in names:
        try:
            figures = await FIGURES[name](bench)
        except Exception as error:  # noqa: BLE001 - one figure that fails must not cost the others: the card is lent
            traceback.print_exc()
            figures = [Figure(name, None, "", note=why(error))]
            failed += 1
        for figure in figures:
            print(figure.line(), flush=True)
    for name in list(bench.batchers):
        await bench.drop(name)
    return 1 if failed else 0


def _has_card() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _weights() -> Path:
    from musetalk_agent.agent_settings import offline_settings

    return offline_settings().models_dir


def _made(folder: Path, *, tiny: bool) -> None:
    from tests.fakes.weights import write_models

    begun = time.perf_counter()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was broken off
    write_models(part, scale="tiny" if tiny else "full", taesd=True, parsing=False)
    if (_weights() / "face").is_dir():  # what finds faces in the avatars of rooms and films
        (part / "face").symlink_to((_weights() / "face").resolve())
    part.rename(folder)
    print(f"bench-gpu: random weights written in {time.perf_counter() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
