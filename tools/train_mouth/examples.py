"""Training examples: normalised log-mels of clean and augmented sound beside what the network should say.

Run: `python examples.py CACHE [--copies 3] [--minutes-of-nothing 16]`; writes `examples/NAME.npz` with `mels` float16[2·t, 40] and
the 50 Hz targets `hard`, `soft` float16[t, 25] (label, teacher), `closure`, `tuck` float16[t, 1], `jaw` float16[t, n] (see
`aperture.py`).
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import augment
import labels
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features import mouth_network
from musetalk_agent.features.phonemes import CLASSES, SILENCE

RATE = 16_000
PIECE = 20 * RATE


def targets(cache: Path, name: str) -> dict[str, NDArray[np.floating]]:
    """50 Hz targets of one recording, as floats [t, c]; step t is the moment 20·t ms."""
    taught = np.load(cache / "teacher" / f"{name}.npz")
    spans = np.load(cache / "corpus" / f"{name}.npz")["spans"]
    count = len(taught["phonemes"])
    kind = labels.class_steps(spans, count)
    hard = np.eye(len(CLASSES), dtype=np.float32)[kind]
    soft = taught["phonemes"].astype(np.float32)
    silent = soft[:, SILENCE : SILENCE + 1] * hard[:, SILENCE : SILENCE + 1]
    return {
        "hard": hard,
        "soft": soft,
        "closure": labels.closure_steps(spans, count)[:, None],
        "tuck": labels.tuck_steps(spans, count)[:, None],
        "jaw": np.load(cache / "aperture" / f"{name}.npy").astype(np.float32) * (1 - silent),
    }


def _stretched(values: NDArray[np.floating], factor: float, count: int) -> NDArray[np.floating]:
    index = np.clip(np.rint(np.arange(count) * factor).astype(int), 0, len(values) - 1)
    out: NDArray[np.floating] = values[index]
    return out


def _packed(
    sound: NDArray[np.int16], wanted: dict[str, NDArray[np.floating]], factor: float
) -> dict[str, NDArray[np.generic]]:
    mels, _ = mouth_network.log_mels(sound)
    count = len(mels) // 2
    out: dict[str, NDArray[np.generic]] = {"mels": mels[: 2 * count].astype(np.float16)}
    for name, values in wanted.items():
        out[name] = _stretched(values, factor, count).astype(np.float16)
    return out


def pieces(cache: Path, name: str, copy: int) -> list[dict[str, NDArray[np.generic]]]:
    """One recording in pieces of 20 s: as it is (copy 0) or augmented afresh."""
    rng = np.random.default_rng(zlib.crc32(f"{name}/{copy}".encode()))
    sound = np.load(cache / "corpus" / f"{name}.npz")["sound"].astype(np.float32) / 32768
    wanted = targets(cache, name)
    out = []
    for at in range(0, len(sound) - RATE, PIECE):
        part = sound[at : at + PIECE]
        steps = slice(at // 320, (at + len(part)) // 320)
        here = {key: value[steps] for key, value in wanted.items()}
        factor = 1.0
        if copy:
            factor = round(float(np.exp(rng.uniform(np.log(0.82), np.log(1.22)))), 2)
            part = augment.speed(part, factor)
            steps_silent = _stretched(here["hard"][:, SILENCE], factor, len(part) // 320 + 1) > 0
            part = augment.recorded(rng, part, np.repeat(steps_silent, 320)[: len(part)]).astype(np.float32) / 32768
        out.append(_packed((part * 32767).astype(np.int16), here, factor))
    return out


def nothing(cache: Path, minutes: float, heads: int) -> dict[str, NDArray[np.generic]]:
    """Sounds that are no speech, pieces of 20 s, all of them silence to the mouth."""
    rng = np.random.default_rng(7)
    mels = [mouth_network.log_mels(augment.negative(rng, 20.0))[0][:2000] for _ in range(int(minutes * 3))]
    count = sum(map(len, mels)) // 2
    hard = np.eye(len(CLASSES), dtype=np.float16)[np.full(count, SILENCE)]
    empty = np.zeros((count, 1), np.float16)
    found: dict[str, NDArray[np.generic]] = {"hard": hard, "soft": hard, "closure": empty, "tuck": empty}
    return found | {"jaw": np.zeros((count, heads), np.float16), "mels": np.concatenate(mels).astype(np.float16)}


def main() -> None:
    """Writes what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--minutes-of-nothing", type=float, default=30.0)
    options = parser.parse_args()
    cache: Path = options.cache
    (cache / "examples").mkdir(exist_ok=True)
    names = sorted(path.stem for path in (cache / "corpus").glob("*.npz"))
    heads = np.load(cache / "aperture" / f"{names[0]}.npy").shape[1]
    target = cache / "examples" / "nothing.npz"
    if not target.exists():
        np.savez(target, **nothing(cache, options.minutes_of_nothing, heads))
    for copy in range(options.copies + 1):
        for name in names:
            target = cache / "examples" / f"{name}.{copy}.npz"
            if not target.exists():
                made = pieces(cache, name, copy)
                np.savez(target, **{key: np.concatenate([piece[key] for piece in made]) for key in made[0]})
        print(f"copy {copy} done", flush=True)


if __name__ == "__main__":
    main()
