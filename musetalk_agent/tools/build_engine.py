"""`musetalk-agent build-engine`: writes a TensorRT plan of MuseTalk's UNet and decoder for this machine's card."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.engines.musetalk.profiles import BUCKETS, PROFILES, profile_named
from musetalk_agent.errors import AgentError, EngineUnavailable

if TYPE_CHECKING:
    import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", choices=tuple(PROFILES), default="quality", help="whose decoder (default: quality)"
    )
    parser.add_argument("--device", default="cuda:0", help="the card (default: cuda:0)")
    parser.add_argument("--models-dir", type=Path, default=None, help="where the weights are (default: MODELS_DIR)")


def run(args: argparse.Namespace) -> int:
    """Exports, builds, and names the plan, which the engine then uses by itself. 1 with the reason where that cannot be."""
    try:
        plan = build(args.models_dir or offline_settings().models_dir, args.profile, args.device)
    except AgentError as error:
        print(f"musetalk-agent: {error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    print(f"wrote {plan}")
    return 0


def build(models: Path, profile_name: str, device_name: str) -> Path:
    """The plan's path. Raises `EngineUnavailable` without torch, TensorRT or a card, and what loading weights raises."""
    try:
        import torch

        from musetalk_agent.engines.musetalk import tensorrt
    except ImportError as error:
        raise EngineUnavailable(f"{error.name} is not installed: install the extra [musetalk].") from error
    tensorrt.require()
    if not torch.cuda.is_available():
        raise EngineUnavailable("torch sees no CUDA device, and a plan is built on the card that it is for.")
    plan = tensorrt.plan_path(models, profile_named(profile_name), torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "painter.onnx"
        _export(models, profile_name, torch.device(device_name), onnx)
        torch.cuda.empty_cache()  # of the networks, which are gone: the builder tries kernels in what is free
        tensorrt.build(onnx, plan, BUCKETS[-1])
    return plan


def _export(models: Path, profile_name: str, device: torch.device, onnx: Path) -> None:
    """Writes the network as ONNX; it is on the card only meanwhile."""
    import torch

    from musetalk_agent.engines.musetalk import tensorrt
    from musetalk_agent.engines.musetalk.building import decoder_of
    from musetalk_agent.engines.musetalk.loading import load_unet, load_vae
    from musetalk_agent.engines.musetalk.network import FoldedUNet

    dtype = torch.float16
    decoder = decoder_of(profile_named(profile_name), load_vae(models, device, dtype), models, device, dtype)
    painter = tensorrt.UNetAndDecoder(FoldedUNet(load_unet(models, device, dtype)), decoder)
    tensorrt.export(painter, onnx, device, dtype)
