"""The card itself: its speed, its bytes beside float32, its memory, and other ways to run the same network."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any
from unittest import mock

import numpy as np

from tests.bench.figures import Figure, percentile
from tests.bench.shop import NEEDS_CARD, Bench, why


async def card(bench: Bench) -> list[Figure]:
    """What the card is, and what its matrix units really do."""
    import torch

    if bench.device == "cpu":
        return [Figure("card", None, "TFLOP/s", note=NEEDS_CARD)]
    device = torch.device(bench.device)
    a = torch.randn(8192, 8192, device=device, dtype=torch.float16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    tflops = 20 * 2 * 8192**3 / (time.perf_counter() - begun) / 1e12
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return [
        Figure(
            "card: float16 matrix product", tflops, "TFLOP/s", note=f"{torch.cuda.get_device_name(device)}; {versions}"
        )
    ]


async def exact(bench: Bench) -> list[Figure]:
    """Bytes of half precision and of the other profiles beside float32 on the same card and the same inputs."""
    return await asyncio.to_thread(_exact, bench)


def _exact(bench: Bench) -> list[Figure]:
    import torch

    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.engines.musetalk.forwards import forward_of

    torch.backends.cudnn.allow_tf32 = False  # the reference is to be float32 throughout
    source, size = torch.Generator().manual_seed(1), 1 if bench.tiny else 4
    latents = torch.randn(size, 8, 32, 32, generator=source).half()

    def faces(**changes: Any) -> np.ndarray:
        fused = changes.pop("fused", False)
        engine = MuseTalkEngine(bench.models, bench.options(changes.pop("profile", "quality"), **changes))
        network = forward_of("triton", engine.network).network if fused else engine.network
        mel = torch.from_numpy(engine.features.stream(25).push(_noise(16_000))[0]).repeat(size, 1, 1)
        with engine.card.frames():
            pixels, good = network(mel.to(engine.card.device), latents.to(engine.card.device))
            made = pixels.cpu().numpy().astype(np.int16)
        note.append(f"{int(good.sum())} of {size} good")
        engine.close()
        return made

    note: list[str] = []
    whole = faces(precision="float32")
    found = []
    for name, changes in (
        ("float16", {"precision": "float16"}),
        ("float16, Triton's kernels", {"precision": "float16", "fused": True}),
        ("float32, Triton's kernels", {"precision": "float32", "fused": True}),
        ("bfloat16", {"precision": "bfloat16"}),
        ("profile lower", {"profile": "lower"}),
        ("profile fast (random weights: says nothing of quality)", {"profile": "fast"}),
    ):
        made = faces(**changes)
        error = np.abs(made[:, -160:] - whole[:, -160:])
        figures = f"mean {error.mean():.2f}, max {error.max()}, {note[-1]}"
        bar = 3.0 if name.startswith("float16") else 1.0 if name.startswith("float32") else None
        found.append(
            Figure(
                f"{name} beside float32, p99.9 of the shown rows",
                percentile(error, 99.9),
                "steps of a byte",
                bar,
                note=figures,
            )
        )
    return found


def _noise(samples: int) -> Any:
    return np.random.default_rng(0).normal(0, 4000, samples).astype(np.int16)


async def memory(bench: Bench) -> list[Figure]:
    """Device memory of the model, of the warm engine and of an avatar."""
    import torch

    if bench.device == "cpu":
        return [Figure("device memory", None, "GiB", note=NEEDS_CARD)]
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine

    for name in list(bench.batchers):
        await bench.drop(name)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine = await asyncio.to_thread(MuseTalkEngine, bench.models, bench.options())
    loaded = torch.cuda.memory_allocated() - before
    await asyncio.to_thread(engine.warmup)
    reserved = torch.cuda.memory_reserved()
    free, total = torch.cuda.mem_get_info()
    bundle = await bench.bundle(engine)
    engine_session = engine.open(bundle)
    avatar = engine.memory()["avatars"] / len(bundle)
    more = [engine.open(bundle) for _ in range(8)]
    sessions = engine.memory()["avatars"] - avatar * len(bundle)
    for one in (engine_session, *more):
        one.close()
    engine.close()
    gib = 1 << 30
    return [
        Figure("device memory: weights", loaded / gib, "GiB"),
        Figure(
            "device memory: warm, graphs of every bucket",
            reserved / gib,
            "GiB",
            note=f"in use on the card {(total - free) / gib:.1f}",
        ),
        Figure("device memory: avatar, a pose", avatar / 1024, "KiB"),
        Figure("device memory: another session of an avatar", sessions / 1024 / 8, "KiB"),
    ]


async def variants(bench: Bench) -> list[Figure]:
    """Ways to run the same network on a batch of eight: what the defaults were chosen from."""
    return await asyncio.to_thread(_variants, bench)


def _variants(bench: Bench) -> list[Figure]:
    import torch

    from musetalk_agent.engines.musetalk import device
    from musetalk_agent.engines.musetalk.device import card_for
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.engines.musetalk.forwards import forward_of
    from musetalk_agent.engines.musetalk.runner import Runner
    from musetalk_agent.features.whisper_features import rest

    size = 2 if bench.tiny else 8
    engine = MuseTalkEngine(bench.models, bench.options(buckets=(size,)))
    found = []

    def measure(name: str, network: Any = None, *, graphs: bool = True) -> None:
        begun = time.perf_counter()
        try:
            runner = Runner(
                network or engine.network,
                card_for(bench.device, graphs=graphs),
                rest().shape,
                engine.profile.rows,
                (size,),
            )
            runner.warmup()
            warm = time.perf_counter() - begun
            figure = Figure(
                f"variant: {name}", 1000 * runner.measure()[size] / size, "ms a frame", note=f"warm after {warm:.1f} s"
            )
            runner.close()
        except Exception as error:  # noqa: BLE001 - a way that does not work here is a result
            figure = Figure(f"variant: {name}", None, "ms a frame", note=why(error))
        found.append(figure)

    measure("graph, plain torch")
    measure("no graph, plain torch", graphs=False)
    with mock.patch.object(device, "_searched_algorithms", contextlib.nullcontext):
        measure("graph, plain torch, cuDNN's guess instead of its search")
    engine.network.to(memory_format=torch.contiguous_format)
    measure("graph, plain torch, channels first")
    engine.network.to(memory_format=torch.channels_last)
    measure("graph, Triton's kernels", forward_of("triton", engine.network).network)
    if bench.device != "cpu":
        measure("graph, torch.compile", forward_of("compile", engine.network).network)
    engine.close()
    return found
