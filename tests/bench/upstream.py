"""MuseTalk as upstream's real-time script runs it, for comparison in the same process: eager diffusers in half precision, every
session a batch of its own, a blocking copy back, Pillow's blend."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from musetalk_agent.avatars import framing
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts
from musetalk_agent.engines.musetalk.loading import load_unet, load_vae
from musetalk_agent.engines.musetalk.network import positions
from tests.reference import musetalk as reference

UPSTREAM_BATCH = 20
"""`--batch_size` of upstream's script."""


class Upstream:
    """The two networks, called plainly."""

    def __init__(self, models: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._unet = load_unet(models, device, dtype)
        self._vae = load_vae(models, device, dtype)
        self._positions = positions().to(device, dtype)

    @torch.no_grad()
    def faces(self, latents: torch.Tensor, audio: torch.Tensor) -> np.ndarray:
        """`[B, 8, 32, 32]` and `[B, 50, 384]` on the device to uint8 BGR `[B, 256, 256, 3]`."""
        context = audio.to(self._dtype) + self._positions
        step = torch.tensor([0], device=self._device)
        predicted = self._unet(latents.to(self._dtype), step, encoder_hidden_states=context).sample
        picture = self._vae.decode((1 / 0.18215) * predicted).sample
        picture = (picture / 2 + 0.5).clamp(0, 1)
        pixels = picture.detach().cpu().permute(0, 2, 3, 1).float().numpy()
        return (pixels * 255).round().astype("uint8")[..., ::-1]

    def frames_per_second(self, bundle: Bundle, artefacts: MuseTalkArtefacts, batch: int, seconds: float) -> float:
        """Sessions take turns, each with a batch of `batch`; composition included, as upstream's thread does it."""
        latents = torch.from_numpy(np.array(artefacts.latents[:1])).to(self._device).repeat(batch, 1, 1, 1)
        audio = torch.randn(batch, 50, 384, device=self._device)
        frame = framing.to_bgr(np.ascontiguousarray(bundle.frames[0]))
        x1, y1, x2, y2 = (int(v) for v in artefacts.boxes[0])
        mask = reference.mask_in_crop(np.full((512, 512), 255, np.uint8), (x1, y1, x2, y2))
        self.faces(latents, audio)
        begun, made = time.perf_counter(), 0
        while made == 0 or time.perf_counter() - begun < seconds:
            for face in self.faces(latents, audio):
                reference.blend(frame.copy(), face, (x1, y1, x2, y2), mask)
            made += batch
        return made / (time.perf_counter() - begun)
