"""What the parts of MuseTalk's network cost on its device, and their share of its peak speed. Needs the extra [musetalk].

Each part is captured by itself as the engine captures the whole, as a CUDA graph on a GPU, so that the GPU's work is timed and not
the launching of its kernels. In service one graph holds all parts, and copies overlap with the next batch. Where the engine runs
what `torch.compile` made, each part is compiled by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from musetalk_agent.engines.musetalk.device import Card, Outputs
from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
from musetalk_agent.engines.musetalk.network import LATENT_SHAPE, to_pixels
from musetalk_agent.features.whisper_features import rest
from musetalk_agent.measure.profile import StageTiming

_PEAK_SIDE = {"cuda": 8192, "cpu": 2048}
_PEAK_TRIES = 4


@dataclass(frozen=True)
class NetworkStages:
    """The parts of a frame, and `peak`: operations per second of a large matrix product on the device, in the same precision."""

    stages: list[StageTiming]
    peak: float


def network_stages(engine: MuseTalkEngine, frames: int, batch: int, progress: Callable[[int], object]) -> NetworkStages:
    """Times the parts over at least `frames` frames in batches of `batch`; the engine must be idle.

    `progress` is called with the frames done.
    """
    network, card = engine.network, engine.card
    silence = torch.from_numpy(rest()).to(card.device)
    mel = silence.expand(batch, *silence.shape).contiguous()
    latents = torch.zeros((batch, *LATENT_SHAPE), dtype=torch.float16, device=card.device)

    def whisper() -> Outputs:
        return (
            network.encoder(mel) + network.positions,
        )  # float32: its last row holds integers that bfloat16 would round

    with card.frames():
        (audio,) = whisper()

    def unet() -> Outputs:
        return (network.unet(latents.to(network.dtype), audio),)

    with card.frames():
        (made,) = unet()

    def decoder() -> Outputs:
        return to_pixels(network.decoder(made))

    with card.frames():
        pixels, _ = decoder()
    host = card.host_buffer(tuple(pixels.shape), torch.uint8)

    def copy() -> Outputs:
        return (host.copy_(pixels, non_blocking=True),)

    parts = {"whisper": whisper, "unet": unet, "decoder": decoder}
    flop = {name: operations(part, card) for name, part in parts.items()}
    peak = _peak(card, network.dtype)
    timed = (
        {name: torch.compile(part, dynamic=False) for name, part in parts.items()}
        if engine.fused == "compile"
        else parts
    )
    with card.frames():
        fixed = {name: card.capture(part) for name, part in timed.items()} | {"copy": copy}
        times: dict[str, list[float]] = {name: [] for name in fixed}
        for done in range(0, frames, batch):
            for name, part in fixed.items():
                times[name].append(_seconds(part, card) / batch)
            progress(done + batch)
    stages = [StageTiming(name, each, flop[name] // batch if name in flop else None) for name, each in times.items()]
    return NetworkStages(stages, max(peak, _peak(card, network.dtype)))  # the machine may have had other work once


def _seconds(call: Callable[[], Outputs], card: Card) -> float:
    begun = time.perf_counter()
    call()
    card.record_event().wait()
    return time.perf_counter() - begun


def operations(call: Callable[[], Outputs], card: Card) -> int:
    """Floating-point operations of a call, a multiplication and an addition counted as two."""
    with card.frames(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _peak(card: Card, dtype: torch.dtype) -> float:
    side = _PEAK_SIDE[card.device.type]
    with card.frames():
        one: Tensor = torch.rand((side, side), device=card.device).to(dtype)
        product = card.capture(lambda: (one @ one,))
        best = min(_seconds(product, card) for _ in range(_PEAK_TRIES))
    return 2 * float(side) ** 3 / best
