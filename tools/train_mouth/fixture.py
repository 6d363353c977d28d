"""Writes the speech that the project's tests carry: a few seconds of the CC0 voice `joe`, as 8-bit µ-law with its sounds.

Run: `python fixture.py ../../tests/data/spoken_joe.npz`; `mulaw` uint8[n] at 16 kHz, `spans` int32[m, 3] (class, start, end).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import corpus
import numpy as np
import voices

TEXTS = (
    "My mother gave Bob a map of the farm.",
    "A father, a sea, a shoe. Calm cars, three keys, two blue shoes.",
)


def main() -> None:
    """Speaks, compresses, writes."""
    sound, spans = corpus.assemble(voices.piper(list(TEXTS), 1.0, 0.3), corpus.LATE_MS["piper"], random.Random(3))
    x = sound.astype(np.float64) / 32768
    coded = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, mulaw=np.rint((coded + 1) * 127.5).astype(np.uint8), spans=spans)
    print(path.stat().st_size, "bytes", len(sound) / 16000, "s")


if __name__ == "__main__":
    main()
