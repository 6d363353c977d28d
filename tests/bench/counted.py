"""What a frame needs by count, from shapes alone: operations, and bytes moved outside them. The same on every machine."""

from __future__ import annotations

import asyncio

from tests.bench.figures import Figure
from tests.bench.shop import Bench


async def counted(bench: Bench) -> list[Figure]:
    """Operations and element-wise traffic of a frame of `quality`, of full size and in half precision."""
    return await asyncio.to_thread(_counted)


def _counted() -> list[Figure]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from musetalk_agent.engines.musetalk.fused_network import fused
    from tests.bench.traffic import elementwise_bytes
    from tests.musetalk_agent.engines.musetalk.models import network_on_meta

    network, inputs = network_on_meta()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    plain = elementwise_bytes(lambda: network(*inputs)) / 1e9
    other = fused(network).to(memory_format=torch.channels_last)
    moved = elementwise_bytes(lambda: other(*inputs)) / 1e9
    note = f"plain torch {plain:.2f} GB"
    return [
        Figure("operations of a frame, counted", counter.get_total_flops() / 1e9, "GFLOP", 700),
        Figure("bytes a frame moves outside products, fused, counted", moved, "GB", 1.2, note=note),
    ]
