"""Joins the weights of several seeds into one file, and learns its last output: that what is heard is no hum, music or breath.

Run: `python finish.py CACHE OUT SEED…`; each SEED is a file of `real.py --out`, or a folder of `real.py --folds` (files of the same
name are joined, and the talkers of the name are not heard). OUT is a file or a folder accordingly.

Joined, the GRUs stand side by side, openings and logits are means. The last output, `voice`, is a layer of its own on all that is
heard and remembered; it hears `clips/` and `replay.npz` of CACHE, and `NOTHING` more sounds that are no speech, most of them with a
pitch. The pauses of real talkers count as speech: their mouths move there, too, and the gate knows about silence.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import augment
import numpy as np
import torch
from lips import LEARNED, trunk
from numpy.typing import NDArray
from real import BEHIND, STEPS, around
from real_examples import mels_of
from torch import Tensor, nn

from musetalk_agent.features.mouth_network import OUTPUTS, WIDTH, default_weights
from musetalk_agent.features.phonemes import SILENCE

SEED, TURNS, BATCH, RATE = 5, 500, 4096, 3e-3
VOICED = 32  # hidden units of the last output
NOTHING, SHORT = 2200, 24_000  # sounds, samples of each: beginnings are what is hard
WEIGHT = 4.0  # of a moment of a sound that is no speech
SHARES = 0.35, 0.25, 0.40  # of a batch: clips, replay, no speech
Array = NDArray[np.float32]
Arrays = dict[str, Array]


def joined(files: list[Arrays]) -> Arrays:
    """One network of several with the same trunk, without the last output."""
    out = {name: value for name, value in files[0].items() if not name.startswith("lips")}
    count, size = len(files), len(files) * WIDTH
    gates = [np.split(f["lips.wh"], 3) for f in files]
    out["lips.wh"] = np.zeros((3 * size, size), np.float32)
    for gate in range(3):
        for i in range(count):
            rows = slice(gate * size + i * WIDTH, gate * size + (i + 1) * WIDTH)
            out["lips.wh"][rows, i * WIDTH : (i + 1) * WIDTH] = gates[i][gate]
    for name in ("lips.wi", "lips.bi", "lips.bh"):
        out[name] = np.concatenate([np.split(f[name], 3)[gate] for gate in range(3) for f in files])
    one, two = [], []
    for i, f in enumerate(files):
        rows = np.zeros((len(f["lips1.w"]), 2 * WIDTH + size), np.float32)
        rows[:, : 2 * WIDTH] = f["lips1.w"][:, : 2 * WIDTH]
        rows[:, (2 + i) * WIDTH : (3 + i) * WIDTH] = f["lips1.w"][:, 2 * WIDTH :]
        one.append(rows)
        two.append(f["lips2.w"] / count)
    fits = [np.mean([part[LEARNED:] for part in one], 0), np.mean([f["lips1.b"][LEARNED:] for f in files], 0)]
    out["lips1.w"] = np.concatenate([*(part[:LEARNED] for part in one), fits[0]])
    out["lips1.b"] = np.concatenate([*(f["lips1.b"][:LEARNED] for f in files), fits[1]])
    out["lips2.w"] = np.concatenate(
        [*(part[:, :LEARNED] for part in two), np.sum([part[:, LEARNED:] for part in two], 0)], 1
    )
    out["lips2.b"] = np.mean([f["lips2.b"] for f in files], 0)
    return out


def _remembered(arrays: Arrays, heard: NDArray[np.float16]) -> Tensor:
    """[n, t, 256] → what the last output reads [n, t - BEHIND, 256 + memory], float16: step n + BEHIND for moment n."""
    gru = nn.GRU(heard.shape[-1], arrays["lips.wh"].shape[1], batch_first=True)
    names = {"weight_ih_l0": "wi", "weight_hh_l0": "wh", "bias_ih_l0": "bi", "bias_hh_l0": "bh"}
    gru.load_state_dict({here: torch.from_numpy(arrays[f"lips.{there}"]) for here, there in names.items()})
    with torch.inference_mode():
        parts = torch.from_numpy(heard).split(64)
        out = torch.cat([torch.cat([part.float(), gru(part.float())[0]], -1)[:, BEHIND:].half() for part in parts])
    return out.clone()


def nothing(cache: Path, start: Path) -> NDArray[np.float16]:
    """More sounds that are no speech, most of them with a pitch: `heard` float16[n, 75, 256]; made once."""
    path = cache / "nothing.npz"
    if not path.exists():
        rng, out = np.random.default_rng(123), []
        pitched = (augment.hum, augment.music, augment.tones, augment.buzz)
        kinds = (
            *pitched,
            *pitched,
            augment.breath,
            augment.breath,
            augment.clicks,
            augment.KINDS["white"],
            augment.KINDS["coloured"],
        )
        for i in range(NOTHING):
            sound = kinds[i % len(kinds)](rng, SHORT)
            sound = augment.begun(rng, sound) if rng.random() < 0.5 else sound
            if rng.random() < 0.25:
                sound = sound * np.minimum(1, np.arange(SHORT) / (rng.uniform(0.1, 1.5) * 16_000)) ** rng.uniform(
                    0.5, 2
                )
            if rng.random() < 0.15:
                sound = sound + augment.coloured(rng, len(sound), 1.0) * 10 ** rng.uniform(-2, -0.5)
            out.append(mels_of(sound * 10 ** (rng.uniform(-52, -10) / 20)))
        np.savez(path, heard=trunk(start, torch.from_numpy(np.array(out, np.float32))))
    heard: NDArray[np.float16] = np.load(path)["heard"]
    return heard


def _gathered(arrays: Arrays, cache: Path, start: Path, without: list[str]) -> list[tuple[Tensor, Tensor]]:
    """Clips, replay, no speech: (features [n, f], wanted [n])."""
    rng, xs = np.random.default_rng(SEED), []
    for path in sorted((cache / "clips").glob("*.npz")):
        if path.stem in without:
            continue
        with np.load(path) as stored:
            heard = stored["heard"]
        few, view = rng.permutation(len(heard))[:12], int(rng.integers(1, heard.shape[1]))
        xs += [_remembered(arrays, heard[few, of])[:, :STEPS].flatten(0, 1) for of in (0, view)]
    with np.load(cache / "replay.npz") as stored:
        none, heard, kind = stored["nothing"][:, 0] > 0, stored["heard"], stored["kind"]
    said = around(torch.from_numpy((kind[~none] != SILENCE).astype(np.float32)))[:, :-BEHIND]
    quiet = (heard[none], nothing(cache, start))
    still = torch.cat([_remembered(arrays, sounds).flatten(0, 1) for sounds in quiet])
    return [
        (torch.cat(xs), torch.ones(sum(map(len, xs)))),
        (_remembered(arrays, heard[~none]).flatten(0, 1), said.flatten()),
        (still, torch.zeros(len(still))),
    ]


def voiced(arrays: Arrays, cache: Path, start: Path, without: list[str]) -> Arrays:
    """The same network with its last output."""
    torch.manual_seed(SEED)
    groups = _gathered(arrays, cache, start, without)
    counts = [int(BATCH * share) for share in SHARES]
    weight = torch.cat([torch.full((n,), w) for n, w in zip(counts, (1.0, 1.0, WEIGHT), strict=True)])
    layer = nn.Sequential(nn.Linear(groups[0][0].shape[-1], VOICED), nn.ReLU(), nn.Dropout(0.2), nn.Linear(VOICED, 1))
    optimiser = torch.optim.AdamW(layer.parameters(), RATE, weight_decay=1e-2)
    for turn in range(TURNS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - turn / TURNS)
        chosen = [torch.randint(0, len(x), (n,)) for (x, _), n in zip(groups, counts, strict=True)]
        x = torch.cat([g[0][i] for g, i in zip(groups, chosen, strict=True)]).float()
        wanted = torch.cat([g[1][i] for g, i in zip(groups, chosen, strict=True)])
        loss = nn.functional.binary_cross_entropy_with_logits(layer(x)[:, 0], wanted, reduction="none")
        optimiser.zero_grad()
        (loss * weight).mean().backward()
        optimiser.step()
    first, last = layer[0], layer[3]
    out = dict(arrays)
    out["lips1.w"] = np.concatenate([arrays["lips1.w"], first.weight.detach().numpy()])
    out["lips1.b"] = np.concatenate([arrays["lips1.b"], first.bias.detach().numpy()])
    hidden = arrays["lips2.w"].shape[1]
    out["lips2.w"] = np.zeros((OUTPUTS, hidden + VOICED), np.float32)
    out["lips2.w"][:-1, :hidden] = arrays["lips2.w"]
    out["lips2.w"][-1, hidden:] = last.weight.detach().numpy()[0]
    out["lips2.b"] = np.append(arrays["lips2.b"], last.bias.item()).astype(np.float32)
    return out


def _read(path: Path) -> Arrays:
    with np.load(path) as stored:
        return {name: stored[name].astype(np.float32) for name in stored.files}


def main() -> None:
    """Joins, learns, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", type=Path, nargs="+")
    parser.add_argument("--start", type=Path, default=default_weights())
    options = parser.parse_args()
    torch.set_num_threads(1)
    folders = options.seeds[0].is_dir()
    for name in sorted(path.name for path in options.seeds[0].glob("*.npz")) if folders else [""]:
        files = [_read(seed / name if folders else seed) for seed in options.seeds]
        without = Path(name).stem.split("_") if folders else []
        arrays = voiced(joined(files), options.cache, options.start, without)
        path = options.out / name if folders else options.out
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **{key: value.astype(np.float16) for key, value in arrays.items()})
        print(path, flush=True)


if __name__ == "__main__":
    main()
