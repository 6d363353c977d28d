"""Small random networks of MuseTalk's architecture, through the real loader, and stand-ins for a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_agent.engines.musetalk.device import CpuCard, DeviceEvent, Outputs
from musetalk_agent.engines.musetalk.loading import load_taesd, load_unet, load_vae
from musetalk_agent.engines.musetalk.network import AudioEncoder, FoldedUNet, Network, PatchDecoder, fold_upsamplers
from tests.fakes.weights import unet_config, vae_config, whisper_config
from tests.reference.network import PlainNetwork

CPU = torch.device("cpu")


def plain(models: Path) -> PlainNetwork:
    """The reference on weights of its own."""
    return PlainNetwork(
        load_unet(models, CPU, torch.float32),
        load_vae(models, CPU, torch.float32),
        load_taesd(models, CPU, torch.float32),
    )


def inputs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Audio `[n, 50, 384]` and latents float16 `[n, 8, 32, 32]`."""
    source = torch.Generator().manual_seed(seed)
    audio = torch.randn(count, 50, 384, generator=source)
    return audio, torch.randn(count, 8, 32, 32, generator=source).half()


def difference(made: object, wanted: object) -> int:
    """The largest difference of two pictures, in steps of a byte."""
    return int(np.abs(np.asarray(made).astype(np.int16) - np.asarray(wanted).astype(np.int16)).max())


class MeanNetwork(nn.Module):
    """Stands in for the network: every pixel of a face is the sum of its feature and the mean of its latents, as a byte.

    `fails` is called with each batch size and may raise.
    """

    def __init__(self, fails: Callable[[int], None] = lambda _: None, rows: int = 256) -> None:
        super().__init__()
        self.fails, self.rows = fails, rows
        self.batches: list[int] = []

    def forward(self, mel: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(mel))
        self.fails(len(mel))
        value = mel.flatten(1).sum(1) + latents.float().flatten(1).mean(1)
        pixels = value.round().to(torch.uint8)[:, None, None, None].expand(-1, self.rows, 256, 3).contiguous()
        return pixels, value < 250


class CardWithPinnedMemory(CpuCard):
    """The processor, posing as a card: marks are passed only when the test says so, and captures are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.captured = 0
        self.waited = 0
        self.trimmed = 0
        self.error: Exception | None = None

    def capture(self, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
        self.captured += 1
        return call

    def record_event(self) -> DeviceEvent:
        return _CountedMark(self)

    def empty_cache(self) -> None:
        self.trimmed += 1

    @contextmanager
    def frames(self) -> Iterator[None]:
        with torch.inference_mode():
            yield


class _CountedMark:
    def __init__(self, card: CardWithPinnedMemory) -> None:
        self._card = card

    def wait(self, within_s: float | None = None) -> None:
        self._card.waited += 1
        if self._card.error is not None:
            raise self._card.error


class FoldedUNetOnMeta(FoldedUNet):
    """`FoldedUNet` of a network without weights: its time has no numbers to be folded."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        torch.nn.Module.__init__(self)
        for module in unet.modules():
            if getattr(module, "time_emb_proj", None) is not None:
                module.time_emb_proj = None
        fold_upsamplers(unet)
        self.unet = unet


def plain_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Without the comments of a configuration file."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def network_on_meta() -> tuple[Network, tuple[Tensor, Tensor]]:
    """The network of `quality`, of full size in half precision, and its two inputs for one frame: shapes alone, to be counted."""
    with torch.device("meta"):
        unet = FoldedUNetOnMeta(UNet2DConditionModel(**plain_fields(unet_config("full"))).eval())
        decoder = PatchDecoder(AutoencoderKL(**plain_fields(vae_config("full"))).eval())
        encoder = AudioEncoder(WhisperEncoder(WhisperConfig(**whisper_config("full"))).eval())
        network = Network(encoder, unet, decoder, torch.float16).half().to(memory_format=torch.channels_last)
        return network, (torch.empty(1, 420, 80), torch.empty(1, 8, 32, 32, dtype=torch.float16))
