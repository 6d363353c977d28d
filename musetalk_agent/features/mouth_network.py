"""The small causal network from log-mels to phonemes, opening, speech and lip closure: plain numpy, one step at a time.

40 log-mels at 100 Hz → strided convolution to 50 Hz → three residual dilated convolutions → GRU → heads. Every step does
operations of one fixed shape, so the result does not depend on how the sound was cut into pieces, not even in its last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.arrays import DamagedArrays, stored_arrays
from musetalk_agent.errors import WeightsMissing
from musetalk_agent.features import melspec
from musetalk_agent.features.phonemes import CLASSES

Array = NDArray[np.float32]

STEP = 2 * melspec.HOP
"""Samples per step of the network (20 ms)."""
STEP_MS = 20
LOOKAHEAD_MS = 100
"""Step n reads sound up to 20·(n+1) ms and speaks of the moment `LOOKAHEAD_MS` before that."""
WIDTH = 128
DILATIONS = (1, 2, 4)
_FRAMES = 4  # mel frames under the strided convolution
HEADS = len(CLASSES) + 3  # phonemes, speech, closure, tuck; the opening has a layer of its own
_ROOT = Path(__file__).parents[1]


def default_weights() -> Path:
    """The shipped weights: inside the installed package, or in the repository's `models/`."""
    packed = _ROOT / "_models" / "mouth" / "mouth.npz"
    return packed if packed.exists() else _ROOT.parent / "models" / "mouth" / "mouth.npz"


@dataclass(frozen=True, slots=True)
class Step:
    """What one step says: phoneme posteriors float32[25], and opening, speech, closure, tuck as numbers in 0..1."""

    phonemes: Array
    opening: float
    speech: float
    closure: float
    tuck: float


class MouthNetwork:
    """Weights, loaded once and shared; immutable.

    File format: `.npz` (float16 arrays, no pickle) with `conv.w` [128, 160], `conv.b`, `res{0,1,2}.w` [128, 384], `.b`,
    `gru.wi` [384, 128], `gru.wh`, `gru.bi`, `gru.bh`, `head.w` [28, 128], `head.b`, `open1.w` [48, 128], `open1.b`,
    `open2.w` [1, 48], `open2.b`; a convolution's columns are ordered by time, then channel; the GRU's rows are reset,
    update, new as in torch.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._a = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in arrays.items()}

    @classmethod
    def load(cls, path: Path) -> MouthNetwork:
        """Reads the weights. Raises `WeightsMissing` when the file is missing or not what it should be."""
        try:
            with stored_arrays(path) as stored:
                arrays = {name: stored[name].astype(np.float32) for name in stored}
        except (FileNotFoundError, DamagedArrays) as error:
            raise _unusable(path, str(error)) from error
        shapes = {"conv.w": (WIDTH, _FRAMES * melspec.BANDS), "gru.wh": (3 * WIDTH, WIDTH), "head.w": (HEADS, WIDTH)}
        for name, shape in shapes.items():
            if name not in arrays or arrays[name].shape != shape:
                raise _unusable(path, f"{name} should be {shape}")
        return cls(arrays)

    def run(self) -> NetworkRun:
        """A new run from silence."""
        return NetworkRun(self._a)


def _unusable(path: Path, why: str) -> WeightsMissing:
    return WeightsMissing(f"mouth network {path}: {why}")


def _sigmoid(x: Array) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-np.clip(x, -30, 30)))


class NetworkRun:
    """State of one stream: the convolutions' pasts and the GRU's memory."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._a = arrays
        self._mels = np.zeros((_FRAMES, melspec.BANDS), np.float32)
        self._mels[:] = melspec.network_input(
            np.full((1, melspec.BANDS), -120, np.float32), np.full(1, melspec.FLOOR_DB, np.float32)
        )
        self._past = [np.zeros((2 * dilation + 1, WIDTH), np.float32) for dilation in DILATIONS]
        self._at = [0, 0, 0]
        self._memory = np.zeros(WIDTH, np.float32)

    def step(self, mels: Array) -> Step:
        """Takes the next two mel frames float32[2, 40] (normalised)."""
        a = self._a
        self._mels[:2] = self._mels[2:]
        self._mels[2:] = mels
        x = np.maximum(a["conv.w"] @ self._mels.reshape(-1) + a["conv.b"], 0)
        for i, dilation in enumerate(DILATIONS):
            x = self._residual(i, dilation, x)
        self._memory = self._gru(x)
        logits = a["head.w"] @ self._memory + a["head.b"]
        hidden = np.maximum(a["open1.w"] @ self._memory + a["open1.b"], 0)
        opening = float((a["open2.w"] @ hidden + a["open2.b"])[0])
        phonemes = np.exp(logits[: len(CLASSES)] - logits[: len(CLASSES)].max())
        speech, closure, tuck = _sigmoid(logits[len(CLASSES) :]).tolist()
        return Step(phonemes / phonemes.sum(), min(1.0, max(0.0, opening)), speech, closure, tuck)

    def _residual(self, i: int, dilation: int, x: Array) -> Array:
        ring, size, at = self._past[i], 2 * dilation + 1, self._at[i]
        ring[at] = x
        taps = np.concatenate([ring[(at - 2 * dilation) % size], ring[(at - dilation) % size], x])
        self._at[i] = (at + 1) % size
        y: Array = x + np.maximum(self._a[f"res{i}.w"] @ taps + self._a[f"res{i}.b"], 0)
        return y

    def _gru(self, x: Array) -> Array:
        a, h = self._a, self._memory
        given = a["gru.wi"] @ x + a["gru.bi"]
        kept = a["gru.wh"] @ h + a["gru.bh"]
        gates = _sigmoid(given[: 2 * WIDTH] + kept[: 2 * WIDTH])
        reset, update = gates[:WIDTH], gates[WIDTH:]
        new = np.tanh(given[2 * WIDTH :] + reset * kept[2 * WIDTH :])
        out: Array = (1 - update) * new + update * h
        return out
