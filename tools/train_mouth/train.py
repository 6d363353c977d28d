"""Trains the trunk (convolutions, first GRU, phonemes, speech) on the synthetic voices; no clip of a real talker touches it here.

Run: `python train.py CACHE [--minutes 12] [--resume]`; writes `model.pt`, to go on from, and `start.npz` for `real_examples.py`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from model import CLOSURE, SPEECH, TUCK, Mouth, export
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from musetalk_agent.features.phonemes import CLASSES, SILENCE

SEED = 11
STEPS = 250  # 5 s
BATCH = 24
#: Step n speaks of the moment 20·(n − BEHIND) ms: 100 ms before the end of what it has heard.
BEHIND = 4
HELD_OUT = ("festival-ked_diphone", "piper-5")
Arrays = dict[str, NDArray[np.float16]]


def load(cache: Path, pattern: str = "*.npz") -> list[Arrays]:
    """Every recording but the held-out ones, with its augmented copies (or those of a pattern), and the noises."""
    found = sorted({*(cache / "examples").glob(pattern), cache / "examples" / "nothing.npz"})
    return [dict(np.load(path)) for path in found if path.stem.rsplit(".", 1)[0] not in HELD_OUT]


class Batches:
    """Random 5 s pieces, recordings drawn by length; noise is drawn as often as its share is told."""

    def __init__(self, recordings: list[Arrays], seed: int = SEED) -> None:
        self._rng = np.random.default_rng(seed)
        self._recordings = recordings
        sizes = np.array([len(r["hard"]) for r in recordings], float)
        self._chance = sizes / sizes.sum()

    def next(self, batch: int = BATCH) -> dict[str, Tensor]:
        """Tensors [batch, STEPS, c] and mels [batch, 2·STEPS, 40]."""
        parts: dict[str, list[NDArray[np.float16]]] = {}
        for index in self._rng.choice(len(self._recordings), batch, p=self._chance):
            recording = self._recordings[index]
            at = int(self._rng.integers(0, max(1, len(recording["hard"]) - STEPS)))
            for name, values in recording.items():
                scale = 2 if name == "mels" else 1
                parts.setdefault(name, []).append(values[scale * at : scale * (at + STEPS)])
        return {name: torch.from_numpy(np.stack(values).astype(np.float32)) for name, values in parts.items()}


def losses(logits: Tensor, openings: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every part of the loss; `openings` [b, t, n] against as many columns of `jaw`."""
    logits, openings = logits[:, BEHIND:], openings[:, BEHIND:]
    want = {name: value[:, :-BEHIND] for name, value in batch.items() if name != "mels"}
    kinds = 0.4 * want["hard"] + 0.6 * want["soft"]
    phoneme = -(kinds * functional.log_softmax(logits[..., : len(CLASSES)], -1)).sum(-1).mean()
    silent = want["hard"][..., SILENCE]

    def event(index: int, target: Tensor, weight: float) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits[..., index], target, pos_weight=torch.tensor(weight))

    error = openings - want["jaw"]
    return {
        "phoneme": phoneme,
        "speech": event(SPEECH, 1 - silent, 1.0),
        "closure": event(CLOSURE, want["closure"][..., 0], 2.0),
        "tuck": event(TUCK, want["tuck"][..., 0], 2.0),
        "opening": 10 * (error**2).mean(),
        "velocity": 10 * (error.diff(dim=1) ** 2).mean(),
    }


def main() -> None:
    """Trains for the minutes told, learning rate falling to nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--steps", type=int, help="instead of minutes, for repeatable runs")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--rate", type=float, default=2.5e-3)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    recordings = load(options.cache)
    heads = recordings[0]["jaw"].shape[1]
    model = Mouth(heads)
    if options.resume:
        model.load_state_dict(torch.load(options.cache / "model.pt"))
    batches = Batches(recordings, SEED + options.resume)
    optimiser = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=1e-3)
    begun, step = time.monotonic(), 0
    while (done := step / options.steps if options.steps else (time.monotonic() - begun) / 60 / options.minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = options.rate * min(1.0, step / 50 + 0.02) * (1 - done)
        batch = batches.next()
        parts = losses(*model(batch["mels"]), batch)
        optimiser.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 0:
            told = " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            print(f"{step} {time.monotonic() - begun:.0f}s {told}", flush=True)
    torch.save(model.state_dict(), options.cache / "model.pt")
    export(model, options.cache / "start.npz")
    print(f"{step} steps", flush=True)


if __name__ == "__main__":
    main()
