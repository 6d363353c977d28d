"""MuseTalk's frame the slow way: diffusers and transformers called plainly, one frame at a time, from a description alone.

Nothing here is shared with `musetalk_agent`: it is what the fast path is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from numpy.typing import NDArray


def position_table() -> torch.Tensor:
    """§2.8, element by element: float32 `[50, 384]`."""
    table = torch.zeros(50, 384)
    for position in range(50):
        for k in range(192):
            angle = position * math.exp(2 * k * (-math.log(10_000) / 384))
            table[position, 2 * k] = math.sin(angle)
            table[position, 2 * k + 1] = math.cos(angle)
    return table


@dataclass
class PlainNetwork:
    """§4 as `datagen` and `decode_latents` do it, with batches of one."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    taesd: AutoencoderTiny | None = None

    @torch.no_grad()
    def predicted(self, audio: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """`audio` `[50, 384]` without positions, `latents` `[8, 32, 32]`; `[4, 32, 32]`."""
        context = (audio + position_table())[None]
        predicted: torch.Tensor = self.unet(
            latents[None].float(), torch.tensor([0]), encoder_hidden_states=context
        ).sample
        return predicted[0]

    @torch.no_grad()
    def decoded(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """`[4, 32, 32]` to uint8 BGR `[256, 256, 3]`."""
        return _bytes(self.vae.decode((1 / 0.18215) * latents[None]).sample)

    @torch.no_grad()
    def decoded_tiny(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """The same by TAESD, whose latents are the UNet's own."""
        assert self.taesd is not None
        return _bytes(self.taesd.decode(latents[None]).sample)

    @torch.no_grad()
    def encoded(self, face: NDArray[np.uint8]) -> NDArray[np.float16]:
        """§3.5: uint8 BGR `[256, 256, 3]` to float16 `[8, 32, 32]`, by `mode()`."""
        found = []
        for masked in (True, False):
            rgb = (face[..., ::-1] / 255.0).transpose(2, 0, 1).astype(np.float32)
            if masked:
                rgb[:, 128:] = 0
            picture = torch.from_numpy((rgb - np.float32(0.5)) / np.float32(0.5))[None]
            found.append(self.vae.encode(picture).latent_dist.mode()[0] * 0.18215)
        return torch.cat(found).to(torch.float16).numpy()


def _bytes(decoded: torch.Tensor) -> NDArray[np.uint8]:
    picture = (decoded / 2 + 0.5).clamp(0, 1)
    rgb: NDArray[np.float32] = picture[0].permute(1, 2, 0).float().numpy()
    made: NDArray[np.uint8] = (rgb * 255).round().astype(np.uint8)[..., ::-1]
    return made
