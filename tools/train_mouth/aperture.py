"""From the teacher's phonemes to how far the lips open, by the articulation table: what the trunk learns beside phonemes.

Run: `python aperture.py CACHE`; writes `aperture/NAME.npy` float16[t, 1] at 50 Hz.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.phonemes import CLOSURE, HOLD, JAW, TABLE

Array = NDArray[np.float32]
#: What a talker's 95th percentile becomes as an opening (of 0.12 outer eye distances: the median talker's own p95, 8.7 %).
P95 = 0.75
_SMOOTH = np.array([1, 2, 3, 2, 1], np.float32) / 9


def smooth(x: Array, kernel: Array = _SMOOTH) -> Array:
    """Each column of [t, c] convolved."""
    return np.stack([np.convolve(column, kernel, "same") for column in x.T], 1).astype(np.float32)


def prior(phonemes: Array) -> Array:
    """Opening by the table, neighbours weighted by firmness: [t, 25] → [t], about 0..1."""
    weight = phonemes * (HOLD + 0.05)
    target = (TABLE[:, JAW] * (1 - TABLE[:, CLOSURE]))[:, None]
    return 1.5 * P95 * (smooth(weight @ target) / smooth(weight.sum(1, keepdims=True)))[:, 0]


def main() -> None:
    """Applies the table to everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    cache: Path = parser.parse_args().cache
    (cache / "aperture").mkdir(exist_ok=True)
    for path in sorted((cache / "teacher").glob("*.npz")):
        found = prior(np.load(path)["phonemes"].astype(np.float32))
        np.save(cache / "aperture" / f"{path.stem}.npy", np.clip(found, 0, 1)[:, None].astype(np.float16))


if __name__ == "__main__":
    main()
