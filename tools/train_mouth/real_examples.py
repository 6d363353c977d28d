"""What the network learns real mouths from: the talkers' clips as they are and in other rooms, synthetic speech, and noises.

Run: `python real_examples.py CACHE [--start ../../models/mouth/mouth.npz]`; reads `real/` (talkers.py) and `corpus/` (corpus.py),
puts everything through the convolutions and the first GRU of START, which stay as they are, and writes
- `clips/TALKER.npz`: `heard` float16[n, VIEWS · COPIES, 160, 256] and the 50 Hz targets [n, VIEWS, 150] `aperture` (the talker's
  own range is 0 … `P95`), `speaking` and `closure` (1, 0, or -1 where it is open), and `mean` [150], the others' mean mouth;
- `replay.npz`: pieces of 4 s, `heard` float16[m, 200, 256] and the targets [m, 200] `kind` (class of phoneme), `closure`, `jaw`
  (the articulation table, neighbours weighted), `nothing` (1: no speech at all in the whole piece).
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import augment
import judge
import labels
import numpy as np
import talkers
import torch
from lips import roughened, trunk
from numpy.typing import NDArray
from table import table_jaw

from musetalk_agent.features import mouth_network
from musetalk_agent.features.mouth_network import default_weights
from musetalk_agent.features.phonemes import CLASSES, SILENCE

RATE = 16_000
VIEWS, COPIES = 3, 2
MOST = 60  # clips of one talker
STEPS = 150
AHEAD_S = 0.2  # of silence behind a clip
PIECE = 4 * RATE
P95 = 0.75  # what a talker's 95th percentile becomes
SHUT, OPEN = 0.15, 0.35  # of the range: lips count as together, as apart
NOTHING = 450
Array = NDArray[np.float32]


def mels_of(sound: Array) -> NDArray[np.float16]:
    """The network's input for sound in -1..1."""
    pcm = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
    return mouth_network.log_mels(pcm)[0].astype(np.float16)


def _closure(clip: talkers.Clip, scaled: Array) -> Array:
    """By frame: 1 where lips meet for /p b m/, -1 where that is open, else 0."""
    out = np.zeros(len(scaled), np.float32)
    for frame in judge.marks(clip, judge.CLOSED_AT):
        near = slice(max(0, frame - 3), frame + 4)
        out[near] = -1
        tight = slice(max(0, frame - 2), frame + 3)
        found = scaled[tight]
        out[tight] = np.where(found <= SHUT * P95, 1, np.where(found > OPEN * P95, 0, -1))
    return out


def _views(clip: talkers.Clip, low: float, high: float) -> list[tuple[NDArray[np.float16], Array]]:
    """(mels [320, 40], targets [3, 150]) of a clip as it is, in another room, and by another voice there."""
    rng = np.random.default_rng(zlib.crc32(f"{clip.talker}/{clip.name}".encode()))
    sound = clip.sound.astype(np.float32) / 32768
    scaled = (P95 * (judge.filled(clip.aperture) - low) / (high - low)).astype(np.float32)
    series = np.stack([scaled, judge.speaking(clip).astype(np.float32), _closure(clip, scaled)])
    silent = np.repeat(series[1] == 0, RATE // talkers.FPS)
    size = int(len(sound) + AHEAD_S * RATE)
    out = []
    for view in range(VIEWS):
        factor = 1.0 if view < 2 else round(float(np.exp(rng.uniform(np.log(0.85), np.log(1.18)))), 2)
        heard = augment.speed(sound, factor)
        if view == 2 and rng.random() < 0.3:
            heard = augment.whispered(rng, heard)
        at = (np.arange(len(heard)) * factor).astype(int)
        if view:
            pause = silent[np.minimum(at, len(silent) - 1)]
            heard = augment.recorded(rng, heard, pause).astype(np.float32) / 32768
        heard = np.pad(heard, (0, max(0, size - len(heard))))[:size]
        frames = np.minimum(np.arange(STEPS) / 2 * factor, talkers.FRAMES - 1)
        opened = np.interp(frames, np.arange(talkers.FRAMES), series[0])
        nearest = np.rint(frames).astype(int)
        out.append((mels_of(heard), np.stack([opened, series[1][nearest], series[2][nearest]]).astype(np.float32)))
    return out


def clips(cache: Path, start: Path) -> None:
    """Writes the talkers'."""
    torch.manual_seed(3)
    (cache / "clips").mkdir(exist_ok=True)
    corpus = talkers.load(cache)
    means = judge.mean_mouths(corpus)
    for name, all_clips in corpus.items():
        few = [
            all_clips[i] for i in np.unique(np.linspace(0, len(all_clips) - 1, min(MOST, len(all_clips))).astype(int))
        ]
        low, high = np.percentile(np.stack([judge.filled(clip.aperture) for clip in few]), [5, 95])
        made = [_views(clip, float(low), float(high)) for clip in few]
        mels = torch.from_numpy(np.array([[mels for mels, _ in views] for views in made], np.float32))
        copies = [mels.flatten(0, 1), *(roughened(mels.flatten(0, 1)) for _ in range(COPIES - 1))]
        heard = np.concatenate([trunk(start, copy).reshape(*mels.shape[:2], -1, 256) for copy in copies], 1)
        targets = np.array([[wanted for _, wanted in views] for views in made], np.float32)
        np.savez(
            cache / "clips" / f"{name}.npz",
            heard=heard,
            aperture=targets[:, :, 0],
            speaking=targets[:, :, 1],
            closure=targets[:, :, 2],
            mean=np.interp(np.arange(STEPS) / 2, np.arange(talkers.FRAMES), means[name]).astype(np.float32),
        )


def _spoken(path: Path) -> list[dict[str, NDArray[np.generic]]]:
    rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
    stored = np.load(path)
    sound, spans = stored["sound"].astype(np.float32) / 32768, stored["spans"]
    count = len(sound) // 320
    kind = labels.class_steps(spans, count)
    series = {
        "kind": kind.astype(np.float32),
        "closure": labels.closure_steps(spans, count),
        "jaw": table_jaw(spans, count),
    }
    out = []
    for at in range(0, len(sound) - PIECE, PIECE):
        factor = round(float(np.exp(rng.uniform(np.log(0.85), np.log(1.2)))), 2)
        part = augment.speed(sound[at : at + int(PIECE * factor) + RATE // 10], factor)[:PIECE]
        steps = np.clip(np.rint(at / 320 + np.arange(PIECE // 320) * factor).astype(int), 0, count - 1)
        if rng.random() < 0.7:
            silent = np.repeat(kind[steps] == SILENCE, 320)[: len(part)]
            part = augment.recorded(rng, part, np.pad(silent, (0, len(part) - len(silent)))).astype(np.float32) / 32768
        if len(part) == PIECE:
            here: dict[str, NDArray[np.generic]] = {key: values[steps] for key, values in series.items()}
            out.append({"mels": mels_of(part), "nothing": np.zeros(PIECE // 320, np.float32), **here})
    return out


def replay(cache: Path, start: Path) -> None:
    """Writes synthetic speech and noises."""
    pieces = [piece for path in sorted((cache / "corpus").glob("*.npz")) for piece in _spoken(path)]
    rng = np.random.default_rng(7)
    empty = np.zeros(PIECE // 320, np.float32)
    for _ in range(NOTHING):
        mels = mels_of(augment.negative(rng, PIECE / RATE).astype(np.float32) / 32768)
        still = {"kind": empty + SILENCE, "closure": empty, "jaw": empty, "nothing": empty + 1}
        pieces.append({"mels": mels, **still})
    columns = {key: np.stack([piece[key] for piece in pieces]) for key in pieces[0]}
    columns["heard"] = trunk(start, torch.from_numpy(columns.pop("mels").astype(np.float32)))
    np.savez(cache / "replay.npz", **columns)
    print(f"{len(pieces)} pieces, {len(CLASSES)} classes")


def main() -> None:
    """Writes both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--start", type=Path, default=default_weights())
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips(options.cache, options.start)
    replay(options.cache, options.start)


if __name__ == "__main__":
    main()
