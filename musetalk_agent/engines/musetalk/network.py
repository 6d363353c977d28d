"""The whole network of a frame, from a mel window and a pose's latents to bytes, as one call that can be captured."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from musetalk_agent.engines.musetalk.vae import to_pixels

AUDIO_ROWS, AUDIO_WIDTH = 50, 384
LATENT_SHAPE = (8, 32, 32)
"""Masked latent and reference latent of a pose, four channels each."""


def positions(rows: int = AUDIO_ROWS, width: int = AUDIO_WIDTH) -> Tensor:
    """The sinusoids that are added to the audio, float32 `[rows, width]` (numerics §2.8)."""
    place = torch.arange(rows, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    table = torch.zeros(rows, width)
    table[:, 0::2] = torch.sin(place * rate)
    table[:, 1::2] = torch.cos(place * rate)
    return table


class Network(nn.Module):
    """Audio encoder, UNet and decoder in a row.

    Args:
        encoder: float32 features `[B, columns, 80]` to `[B, 50, 384]` of `dtype` (`whisper.AudioEncoder`).
        unet: latents `[B, 8, 32, 32]` and audio `[B, 50, 384]` to `[B, 4, 32, 32]` (`unet.FoldedUNet`).
        decoder: `[B, 4, 32, 32]` to RGB `[B, 3, h, 256]`, -1 … 1.
        dtype: of all weights.
    """

    positions: Tensor

    def __init__(self, encoder: nn.Module, unet: nn.Module, decoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.unet, self.decoder = encoder, unet, decoder
        self.dtype = dtype
        self.register_buffer("positions", positions().to(dtype), persistent=False)

    def forward(self, mel: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`mel` float32 `[B, columns, 80]`, `latents` float16 `[B, 8, 32, 32]`, both on the network's device.

        Returns uint8 BGR `[B, h, 256, 3]`, the lowest `h` rows of the faces, and bool `[B]`, False for a face to throw away.
        """
        audio = self.encoder(mel) + self.positions
        return to_pixels(self.decoder(self.unet(latents.to(self.dtype), audio)))
