"""The teacher: whisper's features → 25 phoneme classes, learned from the synthetic voices' own phonemes.

Run: `python teacher.py CACHE`; writes `teacher/NAME.npz` with `phonemes` float16[t, 25] at 50 Hz.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import labels
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from musetalk_agent.features.phonemes import CLASSES, SILENCE

Array = NDArray[np.float32]


def stacked(features: NDArray[np.float16], reach: int) -> Array:
    """[t, c] → [t, c·(2·reach + 1)]: each step beside its neighbours."""
    x = np.pad(features.astype(np.float32), ((reach, reach), (0, 0)), mode="edge")
    return np.concatenate([x[i : i + len(features)] for i in range(2 * reach + 1)], axis=1)


class PhonemeReader(nn.Module):
    """Whisper features with their neighbours → phoneme logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(384 * 3, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, len(CLASSES)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 1152] → [n, 25]."""
        out: torch.Tensor = self.layers(x)
        return out


def fit_reader(cache: Path, names: list[str], seed: int = 0, passes: int = 6) -> PhonemeReader:
    """Learns the classes from the corpus; at most 12,000 steps of a voice."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    xs, ys = [], []
    for name in names:
        features = np.load(cache / "whisper" / f"{name}.npy")
        kinds = labels.class_steps(np.load(cache / "corpus" / f"{name}.npz")["spans"], len(features))
        keep = np.flatnonzero((kinds != SILENCE) | (rng.random(len(kinds)) < 0.3))
        keep = rng.permutation(keep)[:12_000]
        xs.append(stacked(features, 1)[keep].astype(np.float16))
        ys.append(kinds[keep])
    x, y = torch.from_numpy(np.concatenate(xs)), torch.from_numpy(np.concatenate(ys))
    model = PhonemeReader()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)
    for turn in range(passes):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * (1 - turn / passes)
        total = 0.0
        for batch in torch.randperm(len(x)).split(512):
            loss = nn.functional.cross_entropy(model(x[batch].float()), y[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(batch)
        print(f"reader pass {turn}: {total / len(x):.3f}", flush=True)
    return model.eval()


def main() -> None:
    """Fits and writes everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache: Path = options.cache
    names = sorted(path.stem for path in (cache / "corpus").glob("*.npz"))
    reader = fit_reader(cache, names)
    (cache / "teacher").mkdir(exist_ok=True)
    for name in names:
        x = torch.from_numpy(stacked(np.load(cache / "whisper" / f"{name}.npy"), 1))
        with torch.inference_mode():
            read = torch.cat([reader(part).softmax(1) for part in x.split(4096)]).numpy()
        np.savez(cache / "teacher" / f"{name}.npz", phonemes=read.astype(np.float16))


if __name__ == "__main__":
    main()
