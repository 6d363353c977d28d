"""From the teacher's phonemes and the sound's band levels to how far the lips open: a prior and a ridge.

The prior is the articulation table alone; what it misses is fitted on measured clips (each scaled to its own range, since
talkers differ by a factor of three), from phonemes (±20 ms) and coarse band levels. A fit on phonemes alone does not carry
over from three clips to a fourth any better than the table; levels add what stress does to vowels.
Run: `python aperture.py CACHE`; writes `aperture/NAME.npy` float16[t, 2 + clips] at 50 Hz: by the table, fitted on all
clips, fitted on all but the n-th clip; and prints the leave-one-out correlations of the teacher.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features import melspec
from musetalk_agent.features.phonemes import CLOSURE, HOLD, JAW, TABLE

Array = NDArray[np.float32]
#: What a talker's 95th percentile becomes as an opening (of 0.12 outer eye distances: the median talker's own p95, 8.7 %).
P95 = 0.75
#: Strength of the ridge, and the real frame's moment against the sound (ms), by leave-one-out on four clips.
STRENGTH, FRAME_MS = 30.0, 0.0
_SMOOTH = np.array([1, 2, 3, 2, 1], np.float32) / 9
_EDGES_HZ = ((60, 8000), (100, 400), (400, 800), (800, 1500), (1500, 3000), (3000, 8000))


def smooth(x: Array, kernel: Array = _SMOOTH) -> Array:
    """Each column of [t, c] convolved."""
    return np.stack([np.convolve(column, kernel, "same") for column in x.T], 1).astype(np.float32)


def beside(x: Array, reach: int) -> Array:
    """[t, c] → [t, c·(2·reach + 1)]: each step beside its neighbours."""
    padded = np.pad(x, ((reach, reach), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(x)] for i in range(2 * reach + 1)], axis=1)


def prior(phonemes: Array) -> Array:
    """Opening by the table, neighbours weighted by firmness: [t, 25] → [t], about 0..1."""
    weight = phonemes * (HOLD + 0.05)
    target = (TABLE[:, JAW] * (1 - TABLE[:, CLOSURE]))[:, None]
    return 1.5 * P95 * (smooth(weight @ target) / smooth(weight.sum(1, keepdims=True)))[:, 0]


def band_levels(sound: NDArray[np.int16], count: int) -> Array:
    """Six coarse band levels at 50 Hz: [count, 6]."""
    mels, _ = melspec.whole(np.pad(sound, (0, 320 * count)))
    pairs = mels[: 2 * count].reshape(count, 2, -1).mean(1)
    top = 2595 * np.log10(1 + np.array([60.0, 7600.0]) / 700)
    hz = 700 * (10 ** (np.linspace(*top, melspec.BANDS + 2)[1:-1] / 2595) - 1)
    return np.stack([pairs[:, (hz >= low) & (hz < high)].mean(1) for low, high in _EDGES_HZ], 1)


def inputs(phonemes: Array, sound: NDArray[np.int16]) -> Array:
    """What the ridge reads: [t, 93]."""
    levels = smooth(band_levels(sound, len(phonemes)), np.array([1, 2, 1], np.float32) / 4)
    return np.concatenate([beside(phonemes, 1), 0.5 * beside(levels, 1)], 1)


def scaled(aperture: Array) -> Array:
    """A clip's apertures on its own scale: closed (5th percentile) 0, wide (95th) `P95`."""
    low, high = np.nanpercentile(aperture, [5, 95])
    return (P95 * (aperture - low) / (high - low)).astype(np.float32)


def at_frames(series: Array, count: int, shift_ms: float = FRAME_MS) -> Array:
    """50 Hz series [t, c] at the moments of 25 fps frames [count, c]."""
    where = (np.arange(count) * 40 + shift_ms) / 20
    low = np.clip(np.floor(where).astype(int), 0, len(series) - 2)
    part = np.clip(where - low, 0, 1)[:, None].astype(np.float32)
    out: Array = series[low] * (1 - part) + series[low + 1] * part
    return out


def ridge(x: Array, y: Array) -> Array:
    """Weights [c + 1] of y ~ x with an intercept, the intercept unpunished."""
    basis = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    punish = np.eye(basis.shape[1]) * STRENGTH
    punish[-1, -1] = 1e-6
    found: Array = np.linalg.solve(basis.T @ basis + punish, basis.T @ y).astype(np.float32)
    return found


def main() -> None:
    """Fits on the clips, applies to everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    cache: Path = parser.parse_args().cache
    (cache / "aperture").mkdir(exist_ok=True)
    clips = {path.stem: dict(np.load(path)) for path in sorted((cache / "clips").glob("*.npz"))}
    sounds = {name: clip["sound"] for name, clip in clips.items()}
    sounds |= {path.stem: np.load(path)["sound"] for path in sorted((cache / "corpus").glob("*.npz"))}
    read = {name: np.load(cache / "teacher" / f"{name}.npz")["phonemes"].astype(np.float32) for name in sounds}
    rows: dict[str, tuple[Array, Array]] = {}
    for name, clip in clips.items():
        wanted = scaled(clip["aperture"])
        base = at_frames(prior(read[name])[:, None], len(wanted))[:, 0]
        rows[name] = at_frames(inputs(read[name], sounds[name]), len(wanted)), wanted - base
    weights = []
    for without in (None, *clips):
        kept = [pair for name, pair in rows.items() if name != without]
        if kept:
            weights.append(ridge(np.concatenate([x for x, _ in kept]), np.concatenate([y for _, y in kept])))
    for name, sound in sounds.items():
        base, x = prior(read[name]), inputs(read[name], sound)
        found = np.stack([base, *(base + x @ w[:-1] + w[-1] for w in weights)], 1)
        np.save(cache / "aperture" / f"{name}.npy", np.clip(found, 0, 1).astype(np.float16))
    for n, (name, clip) in enumerate(clips.items()):
        told = at_frames(np.load(cache / "aperture" / f"{name}.npy").astype(np.float32), len(clip["aperture"]))
        r = [float(np.corrcoef(column, clip["aperture"])[0, 1]) for column in told.T]
        print(f"{name}: table {r[0]:.2f}, fitted without it {r[2 + n]:.2f}, fitted with it {r[1]:.2f}")


if __name__ == "__main__":
    main()
