"""Fine-tunes the trained network on measured clips of real talkers, and exports it.

Run: `python finetune.py CACHE --out FILE.npz [--without CLIP] [--steps 250]`. With `--steps 0` nothing is fine-tuned: the
opening is the one taught by the table alone (`--table`) or by the teacher fitted on the clips.
A frame's vector is judged as a viewer samples it: half way between frame k and frame k + 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import aperture
import augment
from model import CLOSURE, SPEECH, Mouth, export
from musetalk_agent.features import melspec
from train import BEHIND, SEED, Batches, load, losses

CLIP_VIEWS = 24  # of every clip: itself, and recordings of it in other rooms


def views(clip: dict[str, NDArray[np.generic]], rng: np.random.Generator) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(mels [2·t, 40], opening by frame) of a clip as it is and as other microphones would hear it."""
    sound = clip["sound"].astype(np.float32) / 32768
    padded = np.pad(sound, (0, 3200))
    level = np.sqrt(np.convolve(sound**2, np.ones(1600) / 1600, "same"))
    silent = np.pad(level < 0.08 * level.max(), (0, 3200), constant_values=True)
    wanted = np.clip(aperture.scaled(clip["aperture"].astype(np.float32)), 0, 1)
    out = []
    for view in range(CLIP_VIEWS):
        heard = (padded * 32767).astype(np.int16) if view == 0 else augment.recorded(rng, padded, silent)
        mels, _ = melspec.whole(heard)
        out.append((mels[: len(mels) // 2 * 2], wanted))
    return out


def framed(made: Tensor, count: int) -> Tensor:
    """Steps [b, t] as 25 fps frames seen half way to the next [b, count - 1]; frame k is step 2·k + 3 of BEHIND 4."""
    frames = made[:, BEHIND - 1 :: 2][:, :count]
    return (frames[:, :-1] + frames[:, 1:]) / 2


def mouth_opening(logits: Tensor, opening: Tensor) -> Tensor:
    """What is drawn: opening while there is speech and the lips are not pressed together."""
    speech = torch.sigmoid(logits[..., SPEECH])
    closure = torch.clamp((torch.sigmoid(logits[..., CLOSURE]) - 0.3) / 0.25, 0, 1)
    return opening * speech * (1 - closure)


def finetune(model: Mouth, head: int, cache: Path, without: str | None, steps: int, rate: float) -> None:
    """Clips and synthetic speech in turn, so that phonemes and closures are not forgotten."""
    rng = np.random.default_rng(SEED)
    clips = {path.stem: dict(np.load(path)) for path in sorted((cache / "clips").glob("*.npz"))}
    seen = [view for name, clip in clips.items() if name != without for view in views(clip, rng)]
    batches = Batches(load(cache), SEED + 5)
    size = min(len(mels) for mels, _ in seen)
    mels = torch.from_numpy(np.stack([m[:size] for m, _ in seen]))
    wanted = torch.from_numpy(np.stack([w for _, w in seen]))
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        chosen = torch.from_numpy(rng.choice(len(seen), 12, replace=False))
        memory = model.trunk(mels[chosen] + 0.05 * torch.randn(12, size, mels.shape[2]))
        made = framed(mouth_opening(model.head(memory), model.opening(memory, head)), wanted.shape[1])
        error = made - wanted[chosen][:, : made.shape[1]]
        batch = batches.next(12)
        batch["jaw"] = batch["jaw"][..., head : head + 1]
        memory = model.trunk(batch["mels"])
        parts = losses(model.head(memory), model.opening(memory, head)[..., None], batch)
        loss = 15 * (error**2).mean() + 10 * (error.diff(dim=1) ** 2).mean() + torch.stack(list(parts.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            print(f"{step}: clips {float((error.detach() ** 2).mean()):.4f}, synthetic {sum(p.item() for p in parts.values()):.3f}", flush=True)


def main() -> None:
    """Fine-tunes and exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without", help="a clip to leave out of everything")
    parser.add_argument("--table", action="store_true", help="start from the opening that no clip has touched")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rate", type=float, default=5e-4)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    state = torch.load(options.cache / "model.pt")
    model = Mouth(sum(name.startswith("open1") and name.endswith("bias") for name in state))
    model.load_state_dict(state)
    names = sorted(path.stem for path in (options.cache / "clips").glob("*.npz"))
    head = 0 if options.table or not names else 2 + names.index(options.without) if options.without else 1
    if options.steps:
        finetune(model, head, options.cache, options.without, options.steps, options.rate)
    export(model, head, options.out)


if __name__ == "__main__":
    main()
