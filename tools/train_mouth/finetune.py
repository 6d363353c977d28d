"""Fine-tunes the trained network on measured clips of real talkers, and exports it.

Run: `python finetune.py CACHE --out FILE.npz [--steps 40]`, also `--leave-one-out FOLDER`. With `--steps 0` nothing is
fine-tuned: the
opening is the one taught by the table alone (`--table`) or by the teacher fitted on the clips.
Few steps on purpose: 150 of them at 5e-4 fit the clips at 0.97 and carry less to a clip left out than none.
A frame's vector is judged as a viewer samples it: half way between frame k and frame k + 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import aperture
import augment
import numpy as np
import torch
from model import CLOSURE, SPEECH, Mouth, export
from numpy.typing import NDArray
from torch import Tensor
from train import BEHIND, SEED, Arrays, Batches, load, losses

from musetalk_agent.features import melspec
from musetalk_agent.features.phonemes import SILENCE

CLIP_VIEWS = 32  # of every clip: itself, and recordings of it in other rooms, faster and slower
FRAMES = 75
DROPOUT = 0.2
SPEECH_OFF, SPEECH_RAMP = (
    0.15,
    0.35,
)  # what the shipped file was tuned with; `visemes.py` opens the gate a little earlier
FAR = 0.4  # weight of frames far from speech
NOTHING = 3.0  # weight of sounds that are no speech: clips alone teach that mouths open before speech, and so in noise
CLIPS = 60.0  # weight of the clips against the synthetic speech
View = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def views(clip: dict[str, NDArray[np.generic]], rng: np.random.Generator) -> list[View]:
    """(mels [2·t, 40], opening and weight by frame) of a clip as it is, and as in other rooms and from other talkers.

    Frames far from speech weigh less: a mouth that is open before speech would be learned as a mouth open in noise.
    """
    sound = clip["sound"].astype(np.float32) / 32768
    level = np.sqrt(np.convolve(sound**2, np.ones(1600) / 1600, "same"))
    silent = level < 0.08 * level.max()
    wanted = np.clip(aperture.scaled(clip["aperture"].astype(np.float32)), 0, 1)
    near = np.convolve(~silent, np.ones(2 * 2400), "same") > 0.5  # within 150 ms of speech
    size = FRAMES * 640 + 3200
    out = []
    for view in range(CLIP_VIEWS):
        factor = 1.0 if view < 4 else round(float(np.exp(rng.uniform(np.log(0.82), np.log(1.22)))), 2)
        heard = augment.speed(sound, factor)
        heard = np.pad(heard, (0, max(0, size - len(heard))))[:size]
        at = (np.arange(size) * factor).astype(int)
        pause = np.where(at < len(silent), silent[np.minimum(at, len(silent) - 1)], True)
        pcm = (np.clip(heard, -1, 1) * 32767).astype(np.int16) if view == 0 else augment.recorded(rng, heard, pause)
        mels, _ = melspec.whole(pcm)
        frames = np.minimum(np.arange(FRAMES) * factor, len(wanted) - 1)
        series = np.interp(frames, np.arange(len(wanted)), wanted).astype(np.float32)
        weight = near[np.minimum((frames * 640).astype(int), len(near) - 1)].clip(FAR, 1).astype(np.float32)
        out.append((mels[: len(mels) // 2 * 2], series, weight))
    return out


def framed(made: Tensor, count: int) -> Tensor:
    """Steps [b, t] as 25 fps frames seen half way to the next [b, count - 1]; frame k is step 2·k + 3 of BEHIND 4."""
    frames = made[:, BEHIND - 1 :: 2][:, :count]
    return (frames[:, :-1] + frames[:, 1:]) / 2


def mouth_opening(logits: Tensor, opening: Tensor) -> Tensor:
    """What is drawn: opening while there is speech and the lips are not pressed together."""
    speech = torch.clamp((torch.sigmoid(logits[..., SPEECH]) - SPEECH_OFF) / SPEECH_RAMP, 0, 1)
    closure = torch.clamp((torch.sigmoid(logits[..., CLOSURE]) - 0.45) / 0.25, 0, 1)
    return opening * speech * (1 - closure)


def finetune(
    model: Mouth, head: int, cache: Path, without: str | None, steps: int, rate: float, recordings: list[Arrays]
) -> None:
    """Clips and synthetic speech in turn, so that phonemes and closures are not forgotten."""
    rng = np.random.default_rng(SEED)
    batches = Batches(recordings, SEED + 5)
    nothing = Batches([r for r in recordings if r["hard"][:, SILENCE].all()], SEED + 6)
    clips = {path.stem: dict(np.load(path)) for path in sorted((cache / "clips").glob("*.npz"))}
    seen = [view for name, clip in clips.items() if name != without for view in views(clip, rng)]
    mels = torch.from_numpy(np.stack([m for m, _, _ in seen]))
    wanted = torch.from_numpy(np.stack([w for _, w, _ in seen]))
    weights = torch.from_numpy(np.stack([w for _, _, w in seen]))
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        chosen = torch.from_numpy(rng.choice(len(seen), 12, replace=False))
        memory = model.trunk(mels[chosen] + 0.1 * torch.randn(12, *mels.shape[1:]))
        memory = torch.nn.functional.dropout(memory, DROPOUT)
        made = framed(mouth_opening(model.head(memory), model.opening(memory, head)), wanted.shape[1])
        error = (made - wanted[chosen][:, : made.shape[1]]) * weights[chosen][:, : made.shape[1]]
        batch, still = batches.next(8), nothing.next(6)
        batch["jaw"] = batch["jaw"][..., head : head + 1]
        memory = model.trunk(batch["mels"])
        parts = losses(model.head(memory), model.opening(memory, head)[..., None], batch)
        memory = model.trunk(still["mels"])
        unmoved = losses(
            model.head(memory), model.opening(memory, head)[..., None], still | {"jaw": still["jaw"][..., :1]}
        )
        parts["nothing"] = NOTHING * (unmoved["speech"] + unmoved["opening"])
        loss = (
            CLIPS * ((error**2).mean() + 0.5 * (error.diff(dim=1) ** 2).mean())
            + torch.stack(list(parts.values())).sum()
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 20 == 0:
            print(
                f"{step}: clips {float((error.detach() ** 2).mean()):.4f}, synthetic {sum(p.item() for p in parts.values()):.3f}",
                flush=True,
            )


def main() -> None:
    """Fine-tunes and exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--leave-one-out", type=Path, help="a folder for more: NAME.npz has not seen clip NAME")
    parser.add_argument("--table", action="store_true", help="start from the opening that no clip has touched")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=2e-4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(options.cache / "model.pt")
    names = sorted(path.stem for path in (options.cache / "clips").glob("*.npz"))
    recordings = load(options.cache, "*.2.npz") if options.steps else []
    wanted = [*(names if options.leave_one_out else ()), None]
    for without in wanted:
        torch.manual_seed(SEED)
        model = Mouth(sum(name.startswith("open1") and name.endswith("bias") for name in state))
        model.load_state_dict(state)
        head = 0 if options.table or not names else 2 + names.index(without) if without else 1
        if options.steps:
            finetune(model, head, options.cache, without, options.steps, options.rate, recordings)
        export(model, head, options.leave_one_out / f"{without}.npz" if without else options.out)


if __name__ == "__main__":
    main()
