"""Faces to latents and latents to faces, in upstream's order of operations (numerics §3.5 and §4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

FACE = 256
"""Side of the network's face, in pixels."""
BLACK = 8
"""A face without any brighter byte in its lower half is no face: broken weights or an overflow, decoded to black."""


class PatchDecoder(nn.Module):
    """The decoder of the Stable Diffusion VAE.

    Args:
        first_row: latent row from which on rows are decoded; the mid block, whose attention looks at all rows, always sees all.
    """

    def __init__(self, vae: AutoencoderKL, first_row: int = 0) -> None:
        super().__init__()
        self.post_quant_conv: Any = vae.post_quant_conv
        self.decoder: Any = vae.decoder
        self.scale = 1 / vae.config.scaling_factor
        self.first_row = first_row

    def forward(self, latents: Tensor) -> Tensor:
        """`[B, 4, 32, 32]` as the UNet gives them to RGB `[B, 3, 256 - 8·first_row, 256]`, -1 … 1, the lowest rows of the face."""
        decoder = self.decoder
        x = decoder.mid_block(decoder.conv_in(self.post_quant_conv(self.scale * latents)), None)
        x = x[:, :, self.first_row :]
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = resnet(x, None)
            for sampler in block.upsamplers or ():
                x = sampler(x)
        decoded: Tensor = decoder.conv_out(functional.silu(decoder.conv_norm_out(x)))
        return decoded


class TinyDecoder(nn.Module):
    """TAESD's decoder. It reads the UNet's latents as they are: its scaling factor is 1."""

    def __init__(self, taesd: AutoencoderTiny) -> None:
        super().__init__()
        self.decoder: Any = taesd.decoder

    def forward(self, latents: Tensor) -> Tensor:
        """`[B, 4, 32, 32]` to RGB `[B, 3, 256, 256]`, about -1 … 1."""
        decoded: Tensor = self.decoder(latents)
        return decoded


def to_pixels(decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of decoded faces, on their device.

    `decoded` RGB `[B, 3, h, 256]`, -1 … 1, in the decoder's dtype. Returns uint8 BGR `[B, h, 256, 3]`, rounded half to even,
    and bool `[B]`: False where something was not a finite number, or the face is black.
    """
    finite = torch.isfinite(decoded).flatten(1).all(1)
    unit = (decoded / 2 + 0.5).clamp(0, 1)  # in the decoder's dtype, as upstream
    pixels = (unit.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flip(3).contiguous()
    bright = pixels[:, -FACE // 2 :].flatten(1).amax(1) > BLACK
    return pixels, finite & bright


class FaceEncoder(nn.Module):
    """The VAE's encoder for preparation: the mean of the distribution (`mode()`), not a sample, so that it repeats."""

    levels: Tensor

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder: Any = vae.encoder
        self.quant_conv: Any = vae.quant_conv
        self.scale = vae.config.scaling_factor
        # /255 in float64, then float32, as upstream does it on the host
        levels = ((np.arange(256) / 255.0).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
        self.register_buffer("levels", torch.from_numpy(levels), persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        """uint8 BGR `[B, 256, 256, 3]` on the encoder's device to float16 `[B, 8, 32, 32]`: masked latent, reference latent."""
        picture = self.levels[faces.flip(3).permute(0, 3, 1, 2).long()]
        masked = picture.clone()
        masked[:, :, FACE // 2 :] = -1.0
        both = torch.cat([masked, picture]).to(self.quant_conv.weight.dtype)
        moments = self.quant_conv(self.encoder(both))
        mean = moments[:, : moments.shape[1] // 2] * self.scale
        count = len(faces)
        return torch.cat([mean[:count], mean[count:]], 1).to(torch.float16)
