"""A card that fails in earnest: a device assert, memory that another process holds, a kernel that does not end.

Each runs in a process of its own, because none leaves a usable CUDA context behind: `python -m tests.bench.card_faults KIND …`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure
from tests.bench.shop import NEEDS_CARD, Bench

BAR_S = 10.0
"""The process is well again, or ends with exit code 70, within so long."""
LEFT_GIB = 4.0
"""What another process leaves free of the card."""
HANGS_S = 60.0
"""How long the kernel that does not end takes: it must be noticed long before."""
KINDS = {
    "assert": "device assert: failure seen and engine lost or well again",
    "memory": f"started with {LEFT_GIB:g} GiB of the card free: an engine, or a refusal that says why",
    "hang": "hang: failure seen and engine lost or well again",
}


async def faults(bench: Bench) -> list[Figure]:
    """All of them."""
    return [await asyncio.to_thread(_one, bench, kind) for kind in KINDS]


def _one(bench: Bench, kind: str) -> Figure:
    name = KINDS[kind]
    if bench.device == "cpu":
        return Figure(name, None, "s", note=NEEDS_CARD)
    command = [sys.executable, "-m", "tests.bench.card_faults", kind, "--models", str(bench.models)]
    done = subprocess.run(
        [*command, "--device", bench.device, "--profile", bench.profile], capture_output=True, text=True, timeout=150
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            found = json.loads(line)
            bar = None if kind == "memory" else BAR_S
            return Figure(name, found["seconds"], "s", bar, note=found["note"])
    return Figure(name, None, "s", note=f"failed: exit code {done.returncode}: {done.stderr.strip()[-200:]}")


def main() -> int:
    """One of them, here."""
    parser = argparse.ArgumentParser(prog="card_faults", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--profile", default="quality")
    options = parser.parse_args()
    run = asyncio.run(_memory(options) if options.kind == "memory" else _failure(options))
    print(json.dumps(run), flush=True)
    return 0


async def _failure(options: argparse.Namespace) -> dict[str, Any]:
    """Frames are made through the pool while a kernel breaks or blocks the frames' stream; seconds until the pool has decided."""
    import torch

    from musetalk_agent.engines.interface import PatchRequest

    pool, lost = _pool(options)
    await pool.start()
    batcher = pool.batcher("musetalk")
    bench = Bench(options.models, options.device, False, options.profile, 1, options.models.parent / "faults")
    bundle = await bench.bundle(batcher.engine)
    engine_session = await asyncio.to_thread(batcher.engine.open, bundle)
    request = PatchRequest(engine_session, 0, engine_session.rest)
    await batcher.submit(request, 0)
    with torch.cuda.stream(batcher.engine.card._stream):
        if options.kind == "assert":
            torch.zeros(4, device=options.device)[torch.tensor([9], device=options.device)]
        else:
            torch.cuda._sleep(int(HANGS_S * 1.5e9))
    begun = time.perf_counter()
    try:
        await asyncio.wait_for(batcher.submit(request, 1), 2 * HANGS_S)
        frame = "made"
    except Exception as error:  # noqa: BLE001 - what it fails with is the result
        frame = f"{type(error).__name__}: {error}"
    seen = time.perf_counter() - begun
    while not lost.is_set() and not _well(pool) and time.perf_counter() - begun < 60:  # noqa: ASYNC110 - no event says "well"
        await asyncio.sleep(0.05)
    took = time.perf_counter() - begun
    end = "lost, exit code 70" if lost.is_set() else "well again" if _well(pool) else "neither lost nor well after 60 s"
    return {"seconds": round(took, 2), "note": f"{end}; the frame after {seen:.2f} s: {frame[:120]}"}


async def _memory(options: argparse.Namespace) -> dict[str, Any]:
    """Another process takes the card's memory but a little; then the pool starts with `auto`."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLDER, options.device, str(LEFT_GIB), stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert holder.stdout is not None
    await asyncio.wait_for(holder.stdout.readline(), 60)
    begun = time.perf_counter()
    try:
        pool, _ = _pool(options, engine="auto")
        await pool.start()
        name = pool.resolve(None)
        sizes = list(pool.batcher(name).engine.batch_sizes)
        note = f"engine {name}, batches {sizes}; {pool.note(None) or 'no note'}"
        await pool.aclose()
    finally:
        holder.kill()
        await holder.wait()
    return {"seconds": round(time.perf_counter() - begun, 2), "note": note[:300]}


_HOLDER = """
import sys, torch
free, _ = torch.cuda.mem_get_info(torch.device(sys.argv[1]))
held = torch.empty(int(free - float(sys.argv[2]) * 2**30), dtype=torch.uint8, device=sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def _pool(options: argparse.Namespace, engine: str = "musetalk") -> tuple[Any, asyncio.Event]:
    from musetalk_agent.agent_settings import offline_settings
    from musetalk_agent.engine_pool import EnginePool
    from musetalk_agent.weights import Manifest, ModelStore

    changes = {"engine": engine, "musetalk_device": options.device, "musetalk_profile": options.profile}
    settings = offline_settings().model_copy(update={**changes, "models_dir": options.models})
    lost = asyncio.Event()
    return EnginePool(settings, ModelStore(options.models, Manifest.load()), lambda *_: None, lost.set), lost


def _well(pool: Any) -> bool:
    try:
        return not pool.batcher("musetalk").failed
    except Exception:  # noqa: BLE001 - not at this moment, whatever the reason
        return False


if __name__ == "__main__":
    sys.exit(main())
