"""Learns the mouth from real talkers, and exports it: the file that ships, or files that have not seen some talkers.

Run: `python real.py CACHE --out FILE.npz [--seed 1]`, or `--folds FOLDER`: every file there is named after the talkers it has not
seen, for `judge.py`. CACHE holds what `real_examples.py` wrote.

Talkers are drawn almost evenly, whatever the number of their clips. The loss on a clip is on the aperture that is drawn: one minus
its correlation, one minus the same given the mean mouth, and the squared error. Beside the clips run synthetic speech in ten
languages, whose mouth is the articulation table's, and sounds that are no speech. What is exported is the running mean of the
weights, and for the opening half of it: the other half is a ridge on what the trunk hears. It knows less and errs elsewhere; the
mean of the two carries to other talkers better than either. `finish.py` makes a file of it that the product reads.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from lips import CLOSURE, CLOSURE_SOON, GATE, Lips, drawn, export
from numpy.typing import NDArray
from real_examples import P95, STEPS, VIEWS
from torch import Tensor
from torch.nn import functional

from musetalk_agent.features.mouth_network import default_weights
from musetalk_agent.features.phonemes import SILENCE

FOLDS = 4
CLIPS, PIECES = 20, 8  # of one step
EVENLY = 0.5  # a talker with n clips is drawn n^EVENLY as often as one with one
RATE = 3e-3
CLEAN = 0.5  # share of the clips that are heard as they are
KEEP = 0.97  # of the running mean of the weights, each step
DROPOUT = 0.3
BEHIND = 4  # step n speaks of the moment 20·(n − BEHIND) ms; "soon": of the moment 20 ms later
LENGTH = STEPS + 10  # steps of a clip, and of what is taken of a piece
EARLY, LATE = 7, 15  # steps before and after speech in which the gate is open
STRENGTH = 300.0  # of the ridge
CLIP_WEIGHT = 0.7  # a clip of a talker with n of them weighs n^-CLIP_WEIGHT in it
Batch = dict[str, Tensor]


def folds(cache: Path) -> list[list[str]]:
    """The talkers in `FOLDS` groups, those with many clips spread over them."""
    sizes = {}
    for path in (cache / "clips").glob("*.npz"):
        with np.load(path) as stored:
            sizes[path.stem] = len(stored["aperture"])
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    turn = [*range(FOLDS), *reversed(range(FOLDS))]
    return [[name for i, name in enumerate(order) if turn[i % len(turn)] == fold] for fold in range(FOLDS)]


class Clips:
    """Batches of real talkers' clips."""

    def __init__(self, cache: Path, without: list[str], rng: np.random.Generator) -> None:
        self._rng = rng
        paths = [path for path in sorted((cache / "clips").glob("*.npz")) if path.stem not in without]
        self._talkers = [dict(np.load(path)) for path in paths]
        weight = np.array([len(t["heard"]) ** EVENLY for t in self._talkers])
        self._chance = weight / weight.sum()

    def next(self) -> Batch:
        """`heard` [b, 160, 256] and the targets [b, 150]."""
        rows: dict[str, list[NDArray[np.generic]]] = {}
        for index in self._rng.choice(len(self._talkers), CLIPS, p=self._chance):
            talker = self._talkers[index]
            i = self._rng.integers(len(talker["heard"]))
            copy_of = 0 if self._rng.random() < CLEAN else self._rng.integers(1, talker["heard"].shape[1])
            rows.setdefault("heard", []).append(talker["heard"][i, copy_of])
            for key in ("aperture", "speaking", "closure"):
                rows.setdefault(key, []).append(talker[key][i, copy_of % VIEWS])
            rows.setdefault("mean", []).append(talker["mean"])
        return {key: torch.from_numpy(np.stack(values).astype(np.float32)) for key, values in rows.items()}


class Replay:
    """Batches of synthetic speech and noises, half of each."""

    def __init__(self, cache: Path, rng: np.random.Generator) -> None:
        self._rng = rng
        self._pieces = dict(np.load(cache / "replay.npz"))
        nothing = self._pieces["nothing"][:, 0] > 0
        self._kinds = np.flatnonzero(nothing), np.flatnonzero(~nothing)

    def next(self) -> Batch:
        """`heard` [b, LENGTH, 256] and the targets [b, LENGTH]; sounds that are no speech come first."""
        index = np.concatenate([self._rng.choice(kind, PIECES // 2, replace=False) for kind in self._kinds])
        rows: dict[str, list[NDArray[np.generic]]] = {key: [] for key in self._pieces}
        for i in index:
            at = self._rng.integers(self._pieces["kind"].shape[1] - LENGTH + 1)
            for key, values in self._pieces.items():
                rows[key].append(values[i, at : at + LENGTH])
        return {key: torch.from_numpy(np.stack(values).astype(np.float32)) for key, values in rows.items()}


def _one_minus_r(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-3)).mean()


def _without(a: Tensor, given: Tensor) -> Tensor:
    a, given = a - a.mean(1, keepdim=True), given - given.mean(1, keepdim=True)
    return a - given * ((a * given).sum(1, keepdim=True) / (given * given).sum(1, keepdim=True))


def _events(logits: Tensor, wanted: Tensor, weight: float = 1.0) -> Tensor:
    """Cross-entropy where the target is not open (-1)."""
    known = (wanted >= 0).float()
    loss = functional.binary_cross_entropy_with_logits(
        logits, wanted.clamp(0, 1), pos_weight=torch.tensor(weight), reduction="none"
    )
    return (loss * known).sum() / known.sum().clamp(min=1)


def around(speaking: Tensor) -> Tensor:
    """[b, t], also 1 a little before and after."""
    padded = functional.pad(speaking[:, None], (LATE, EARLY))
    return functional.max_pool1d(padded, EARLY + LATE + 1, 1)[:, 0]


def on_clips(out: Tensor, batch: Batch) -> Tensor:
    """The loss on real talkers."""
    loss = torch.zeros(())
    for soon in (0, 1):
        here = out[:, BEHIND - soon : BEHIND - soon + STEPS]
        made, real = drawn(here, bool(soon)), batch["aperture"]
        part = _one_minus_r(made, real)
        part = part + 0.7 * _one_minus_r(_without(made, batch["mean"]), _without(real, batch["mean"]))
        part = part + 3 * ((made - real.clamp(0, 1)) ** 2 * (0.3 + 0.7 * batch["speaking"])).mean()
        part = part + 0.2 * _events(here[..., CLOSURE_SOON if soon else CLOSURE], batch["closure"], 2.0)
        loss = loss + part * (0.4 if soon else 1.0)
    return loss + 0.1 * _events(out[:, BEHIND : BEHIND + STEPS, GATE], around(batch["speaking"]))


def on_replay(out: Tensor, batch: Batch) -> Tensor:
    """The loss on synthetic speech and noises."""
    count = out.shape[1] - BEHIND
    want = {key: values[:, :count] for key, values in batch.items() if key != "heard"}
    half = PIECES // 2
    spoken = around((want["kind"] != SILENCE).float()) * (1 - want["nothing"])
    loss = torch.zeros(())
    for soon in (0, 1):
        here = out[:, BEHIND - soon : BEHIND - soon + count]
        made = drawn(here, bool(soon))
        part = 15 * (made[:half] ** 2).mean() + 1.5 * ((made - want["jaw"])[half:] ** 2).mean()
        part = part + 0.3 * _one_minus_r(made[half:], want["jaw"][half:])
        part = part + 0.4 * _events(here[..., CLOSURE_SOON if soon else CLOSURE], want["closure"], 2.0)
        loss = loss + part * (0.4 if soon else 1.0)
    return loss + 0.6 * _events(out[:, BEHIND : BEHIND + count, GATE], spoken)


def learn(cache: Path, without: list[str], seed: int, steps: int) -> Lips:
    """The mouth after `steps`; it has never seen the talkers of `without`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Lips()
    kept = copy.deepcopy(model).requires_grad_(False)
    clips, replay = Clips(cache, without, rng), Replay(cache, rng)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=3e-2)
    begun = time.process_time()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 15) * (1 - 0.9 * step / steps)
        some, others = clips.next(), replay.next()
        out = model(torch.cat([some["heard"], others["heard"]]), DROPOUT)
        real, made = on_clips(out[:CLIPS], some), on_replay(out[CLIPS:], others)
        optimiser.zero_grad()
        (real + made).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            share = min(KEEP, (step + 1) / (step + 10))
            for mean, now in zip(kept.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - share)
        if step % 25 == 0:
            print(
                f"{step} {time.process_time() - begun:.0f}s clips {real.item():.3f} replay {made.item():.3f}",
                flush=True,
            )
    return kept


def fitted(cache: Path, without: list[str]) -> NDArray[np.float64]:
    """The linear readings: by ridge from every view of the talkers, now and soon, [2, 257]."""
    scale = np.concatenate([np.full(128, 1 / 3), np.ones(128)])
    squares, products = np.zeros((2, 257, 257)), np.zeros((2, 257))
    for path in sorted((cache / "clips").glob("*.npz")):
        if path.stem in without:
            continue
        talker = dict(np.load(path))
        count, views = talker["heard"].shape[:2]
        root = np.sqrt(count**-CLIP_WEIGHT * np.array([CLEAN, *[(1 - CLEAN) / (views - 1)] * (views - 1)]))[
            None, :, None, None
        ]
        for soon in (0, 1):
            heard = talker["heard"][:, :, BEHIND - soon : BEHIND - soon + STEPS : 2].astype(np.float64) * scale
            wanted = talker["aperture"][:, np.arange(views) % VIEWS, ::2]
            x = (np.concatenate([heard, np.ones((*heard.shape[:-1], 1))], -1) * root).reshape(-1, 257)
            squares[soon] += x.T @ x
            products[soon] += x.T @ (wanted * root[..., 0]).reshape(-1)
    found = np.linalg.solve(squares + STRENGTH * np.eye(257), products[..., None])[..., 0]
    return np.concatenate([found[:, :-1] * scale, found[:, -1:]], 1)


def shares(
    model: Lips, fits: NDArray[np.float64], cache: Path, without: list[str]
) -> tuple[NDArray[np.float64], float]:
    """How much of the fits to add, so that both parts move as far, and what makes a talker's 95th percentile `P95`."""
    model.eval()
    learned, straight, sizes = [], [], []
    for path in sorted((cache / "clips").glob("*.npz")):
        if path.stem not in without:
            heard = np.load(path)["heard"][:, 0].astype(np.float32)
            with torch.inference_mode():
                out = model(torch.from_numpy(heard))
            learned.append(out[:, BEHIND : BEHIND + STEPS, :2].reshape(-1, 2).numpy())
            straight.append((heard @ fits[:, :-1].T + fits[:, -1])[:, BEHIND : BEHIND + STEPS].clip(0).reshape(-1, 2))
    share = np.mean([a.std(0) for a in learned], 0) / np.mean([b.std(0) for b in straight], 0) / 2
    sizes = [np.percentile((a / 2 + share * b)[:, 0], 95) for a, b in zip(learned, straight, strict=True)]
    return share, float(P95 / np.median(sizes))


def write(cache: Path, start: Path, without: list[str], seed: int, steps: int, out: Path) -> None:
    """Learns, fits and exports."""
    model, fits = learn(cache, without, seed, steps), fitted(cache, without)
    share, gain = shares(model, fits, cache, without)
    print(f"{out.name}: share of the fits {np.round(share, 2)}, gain {gain:.2f}", flush=True)
    export(model, fits, share, gain, start, out)


def main() -> None:
    """Learns and exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--start", type=Path, default=default_weights())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folds", type=Path)
    parser.add_argument("--only", type=int, nargs="*", help="these of the folds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=360)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.folds:
        for index, without in enumerate(folds(options.cache)):
            if options.only is None or index in options.only:
                out = options.folds / f"{'_'.join(without)}.npz"
                write(options.cache, options.start, without, options.seed, options.steps, out)
    if options.out:
        write(options.cache, options.start, [], options.seed, options.steps, options.out)


if __name__ == "__main__":
    main()
