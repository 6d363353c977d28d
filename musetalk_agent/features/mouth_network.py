"""A small causal network from log-mels to phonemes, mouth opening, speech and lip closure: numpy only, one step at a time.

40 log-mels at 100 Hz → strided convolution to 50 Hz → three residual dilated convolutions → GRU → heads for phonemes and speech;
a second GRU reads the convolutions and the first GRU and has the heads for the mouth, which were trained on real talkers. Every
step has one fixed shape, so the result does not depend on the chunking of the audio, not even in its last bit. `NetworkRun.batch`
runs many steps at once, faster, where the last bits do not matter.

The network was trained on exactly the log-mels and the level tracking below; changing a constant of theirs means training again.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.arrays import DamagedArrays, open_arrays
from musetalk_agent.errors import WeightsMissing
from musetalk_agent.features.phonemes import CLASSES

Array = NDArray[np.float32]

RATE = 16_000
HOP = 160  # samples: 100 frames per second
WINDOW = 400  # samples: 25 ms; frame j is samples [HOP·(j+1) − WINDOW, HOP·(j+1))
BANDS = 40
_FFT = 512
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7600.0

FLOOR_DB = -50.0
"""Level (dB of full scale, see `Normaliser`) below which nothing is amplified: room tone stays quiet."""
DECAY_DB = 0.03
"""Decay of the tracked level per frame: 3 dB/s, slow enough to last over pauses."""
_ATTACK = 0.3  # share of a new frame in the smoothed power: a click of one frame moves the level by a third of its own
_RANGE_DB = 70.0  # anything further below the tracked level is clamped
_SCALE_DB = 20.0  # decibels per unit of the network's input


def _mel_filters() -> NDArray[np.float32]:
    def to_mel(hz: float) -> float:
        return float(2595 * np.log10(1 + hz / 700))  # O'Shaughnessy's formula

    mels = np.linspace(to_mel(_LOWEST_HZ), to_mel(_HIGHEST_HZ), BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = np.arange(_FFT // 2 + 1) * RATE / _FFT
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.maximum(0, np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)))
    scale = 4.0 / (_FFT * WINDOW)  # a full-scale sine reads about 0 dB in its band
    return np.ascontiguousarray((weights * scale).T.astype(np.float32))


_FILTERS = _mel_filters()
_FILTERS_OF_PARTS = np.repeat(_FILTERS, 2, axis=0)
"""The same for the squares of a spectrum's real and imaginary parts in turn."""
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


def band_levels(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows float32[n, 400] in -1..1 → band levels float32[n, 40] in dB of full scale, not below -120."""
    squares = np.fft.rfft(frames * _HANN, _FFT, axis=1).astype(np.complex64, copy=False).view(np.float32)
    squares *= squares
    levels: NDArray[np.float32] = squares @ _FILTERS_OF_PARTS
    np.log10(np.maximum(levels, 1e-12, out=levels), out=levels)
    levels *= 10
    return levels


def frame_powers(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows float32[n, 400] → mean power float32[n] (1.0 is a full-scale square wave)."""
    powers: NDArray[np.float32] = np.einsum("ij,ij->i", frames, frames) / np.float32(frames.shape[1])
    return powers


class Normaliser:
    """Tracks the level of the speech with a fast attack and a slow decay, never below `FLOOR_DB`."""

    def __init__(self) -> None:
        self._power = 0.0
        self._level = FLOOR_DB

    def levels(self, powers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frame powers float32[n] → tracked level in dB after each, float32[n]."""
        out = np.empty(len(powers), np.float32)
        power, level = self._power, self._level
        for i, new in enumerate(powers.tolist()):
            power += _ATTACK * (new - power)
            now = 10 * math.log10(power) if power > 1e-12 else -120.0
            level = max(now, level - DECAY_DB, FLOOR_DB)
            out[i] = level
        self._power, self._level = power, level
        return out


def network_input(bands: NDArray[np.float32], levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Band levels [n, 40] and tracked levels [n], both dB → the network's input float32[n, 40]."""
    scaled: NDArray[np.float32] = bands - levels[:, None]
    np.maximum(scaled, -_RANGE_DB, out=scaled)
    scaled += _RANGE_DB / 2
    scaled /= _SCALE_DB
    return scaled


def log_mels(audio: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Computes a whole recording: int16[n] → input float32[n // 160, 40] and frame powers float32[n // 160]."""
    padded = np.concatenate([np.zeros(WINDOW - HOP, np.float32), audio.astype(np.float32) / 32768])
    if len(padded) < WINDOW:
        return np.zeros((0, BANDS), np.float32), np.zeros(0, np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    powers = frame_powers(frames)
    return network_input(band_levels(frames), Normaliser().levels(powers)), powers


STEP = 2 * HOP
"""Samples per step of the network (20 ms)."""
LOOKAHEAD_MS = 100
"""Step n reads audio up to 20·(n+1) ms and describes the moment `LOOKAHEAD_MS` before that and, less surely, 20 ms later."""
WIDTH = 128
DILATIONS = (1, 2, 4)
_LEAST, _MOST = np.float32(-30), np.float32(30)  # what `_sigmoid` reads: beyond, float32 has 0 and 1
_FRAMES = 4  # mel frames under the strided convolution
HEADS = len(CLASSES) + 3  # phonemes, speech, closure (trained on synthetic voices only, unused), tuck
OUTPUTS = 6  # of the mouth: opening, opening one moment later, closure, closure one moment later, gate, voice
_ROOT = Path(__file__).parents[1]


def default_weights() -> Path:
    """Returns the path of the shipped weights: in the installed package, or in the repository's `models/`."""
    packed = _ROOT / "_models" / "mouth" / "mouth.npz"
    return packed if packed.exists() else _ROOT.parent / "models" / "mouth" / "mouth.npz"


@dataclass(frozen=True, slots=True)
class NetworkStep:
    """Output of one step: phoneme posteriors float32[25], and speech and tuck in 0..1."""

    phonemes: Array
    speech: float
    tuck: float


@dataclass(frozen=True, slots=True)
class LipState:
    """The mouth at one step, all in 0..1.

    `opening` and `closure` (lips pressed together) are pairs: the first value is of the step's own moment, the second of the moment
    20 ms later. `gate` says whether the mouth moves, `voice` whether the audio is a voice and not hum, music or breath.
    """

    opening: tuple[float, float]
    closure: tuple[float, float]
    gate: float
    voice: float


class MouthNetwork:
    """Weights, loaded once and shared; immutable.

    File format: `.npz` (float16 arrays, no pickle) with `conv.w` [128, 160], `conv.b`, `res{0,1,2}.w` [128, 384], `.b`,
    `gru.wi` [384, 128], `gru.wh`, `gru.bi`, `gru.bh`, `head.w` [28, 128], `head.b`; of the mouth `lips.wi` [3·l, 256], `lips.wh`
    [3·l, l], `lips.bi`, `lips.bh`, `lips1.w` [h, 256 + l], `lips1.b`, `lips2.w` [6, h], `lips2.b` (l and h: as many as the file
    has). A convolution's columns are ordered by time, then channel; a GRU's rows are reset, update, new as in torch.

    In memory matrices are turned, so that a vector stands before them (a fifth faster), and a GRU's gates are halved.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        weights = {name: np.ascontiguousarray(value.T, dtype=np.float32) for name, value in arrays.items()}
        for name in ("gru", "lips"):
            for part in ("wi", "wh", "bi", "bh"):
                halved = weights[f"{name}.{part}"][..., : len(weights[f"{name}.wh"]) * 2]
                halved *= np.float32(0.5)  # exact; see `_remembered`
        self._a = weights

    @classmethod
    def load(cls, path: Path) -> MouthNetwork:
        """Reads the weights. Raises `WeightsMissing` when the file is missing or has the wrong form."""
        try:
            with open_arrays(path) as stored:
                arrays = {name: stored[name].astype(np.float32) for name in stored}
        except (FileNotFoundError, DamagedArrays) as error:
            raise _unusable(path, str(error)) from error
        shapes = dict(_SHAPES)
        if "lips.wh" in arrays and "lips1.w" in arrays:
            memory, hidden = arrays["lips.wh"].shape[-1], len(arrays["lips1.w"])
            shapes |= {
                "lips.wh": (3 * memory, memory),
                "lips1.w": (hidden, 2 * WIDTH + memory),
                "lips2.w": (OUTPUTS, hidden),
            }
            shapes["lips.wi"] = 3 * memory, 2 * WIDTH
        for name, shape in shapes.items():
            if name not in arrays or arrays[name].shape != shape:
                raise _unusable(path, f"{name} should be {shape}")
        return cls(arrays)

    def run(self) -> NetworkRun:
        """Returns a new run that begins in silence."""
        return NetworkRun(self._a)

    def lips(self) -> LipsRun:
        """Returns a new run of the mouth's part, to go with a new `run`."""
        return LipsRun(self._a)


_SHAPES = {
    "conv.w": (WIDTH, _FRAMES * BANDS),
    "gru.wh": (3 * WIDTH, WIDTH),
    "head.w": (HEADS, WIDTH),
    "lips2.b": (OUTPUTS,),
}


def _unusable(path: Path, why: str) -> WeightsMissing:
    return WeightsMissing(f"mouth network {path}: {why}")


def _sigmoid(x: Array) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-np.minimum(np.maximum(x, _LEAST), _MOST)))


def _rectified(x: Array, weights: Array, bias: Array) -> Array:
    """`max(x · weights + bias, 0)`."""
    out: Array = np.dot(x, weights)
    out += bias
    return np.maximum(out, 0.0, out=out)


class NetworkRun:
    """State of one stream: past inputs of the convolutions and the first GRU's memory."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._a = arrays
        self._mels = np.zeros((_FRAMES, BANDS), np.float32)
        self._mels[:] = network_input(np.full((1, BANDS), -120, np.float32), np.full(1, FLOOR_DB, np.float32))
        self._past = [np.zeros((2 * dilation + 1, WIDTH), np.float32) for dilation in DILATIONS]
        self._at = [0, 0, 0]
        self.state = np.zeros(2 * WIDTH, np.float32)
        """The convolutions' last output and the GRU's memory: a new array with every step."""

    def step(self, mels: Array) -> NetworkStep:
        """Takes the next two mel frames float32[2, 40] (normalised)."""
        a = self._a
        self._mels[:2] = self._mels[2:]
        self._mels[2:] = mels
        x = _rectified(self._mels.reshape(-1), a["conv.w"], a["conv.b"])
        for i, dilation in enumerate(DILATIONS):
            x = self._residual(i, dilation, x)
        memory = _gru(a, "gru", x, self.state[WIDTH:])
        self.state = np.concatenate([x, memory])
        logits = np.dot(memory, a["head.w"])
        logits += a["head.b"]
        sizes = logits[: len(CLASSES)]
        phonemes = np.exp(sizes - sizes.max())
        phonemes /= phonemes.sum()
        speech, _, tuck = logits[len(CLASSES) :].tolist()
        return NetworkStep(phonemes, _likelihood(speech), _likelihood(tuck))

    def batch(self, mels: Array) -> tuple[Array, Array]:
        """Takes mel frames float32[2·n, 40], n at least 1; returns phoneme posteriors float32[n, 25] and speech float32[n].

        Equal to n calls of `step` up to rounding, in a third of the time.
        """
        a, steps = self._a, len(mels) // 2
        frames = np.concatenate([self._mels[2:], mels])
        self._mels[:] = frames[-_FRAMES:]
        pairs = frames.reshape(steps + 1, 2 * BANDS)
        x = np.maximum(np.concatenate([pairs[:-1], pairs[1:]], axis=1) @ a["conv.w"] + a["conv.b"], 0)
        for i, dilation in enumerate(DILATIONS):
            ring, at = self._past[i], self._at[i]
            row = np.concatenate(
                [ring[at + 1 :], ring[:at], x]
            )  # in the order of time, without the oldest, which is not read
            taps = np.concatenate([row[k * dilation : k * dilation + steps] for k in range(3)], axis=1)
            ring[:] = row[-len(ring) :]
            self._at[i] = 0
            x = x + np.maximum(taps @ a[f"res{i}.w"] + a[f"res{i}.b"], 0)
        given = x @ a["gru.wi"] + a["gru.bi"]
        memories, memory = np.empty((steps, WIDTH), np.float32), self.state[WIDTH:]
        for k in range(steps):
            memories[k] = memory = _remembered(given[k], memory @ a["gru.wh"] + a["gru.bh"], memory)
        self.state = np.concatenate([x[-1], memory])
        logits = memories @ a["head.w"] + a["head.b"]
        sizes = logits[:, : len(CLASSES)]
        phonemes = np.exp(sizes - sizes.max(axis=1, keepdims=True))
        return phonemes / phonemes.sum(axis=1, keepdims=True), _sigmoid(logits[:, len(CLASSES)])

    def _residual(self, i: int, dilation: int, x: Array) -> Array:
        ring, size, at = self._past[i], 2 * dilation + 1, self._at[i]
        ring[at] = x
        taps = np.concatenate([ring[(at - 2 * dilation) % size], ring[(at - dilation) % size], x])
        self._at[i] = (at + 1) % size
        y = _rectified(taps, self._a[f"res{i}.w"], self._a[f"res{i}.b"])
        y += x
        return y


class LipsRun:
    """State of the mouth's part in one stream: the second GRU's memory."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._a = arrays
        self._memory = np.zeros(len(arrays["lips.wh"]), np.float32)

    def step(self, state: Array) -> LipState:
        """Returns the mouth of a step from `NetworkRun.state` after it. Takes every step, in order."""
        a = self._a
        self._memory = _gru(a, "lips", state, self._memory)
        hidden = _rectified(np.concatenate([state, self._memory]), a["lips1.w"], a["lips1.b"])
        out = np.dot(hidden, a["lips2.w"])
        out += a["lips2.b"]
        now, soon, closure, closure_soon, gate, voice = out.tolist()
        return LipState(
            (min(max(now, 0.0), 1.0), min(max(soon, 0.0), 1.0)),
            (_likelihood(closure), _likelihood(closure_soon)),
            _likelihood(gate),
            _likelihood(voice),
        )


def _likelihood(logit: float) -> float:
    """The sigmoid of one number, 0 … 1."""
    return 0.5 + 0.5 * math.tanh(0.5 * logit)


def _gru(a: dict[str, Array], name: str, x: Array, h: Array) -> Array:
    given, kept = np.dot(x, a[f"{name}.wi"]), np.dot(h, a[f"{name}.wh"])
    given += a[f"{name}.bi"]
    kept += a[f"{name}.bh"]
    return _remembered(given, kept, h)


def _remembered(given: Array, kept: Array, h: Array) -> Array:
    """A GRU's next memory. The gates' halves of `given` and `kept` are halved already: sigmoid(x) is (tanh(x / 2) + 1) / 2."""
    size = len(h)
    gates = given[: 2 * size] + kept[: 2 * size]
    np.tanh(gates, out=gates)
    gates *= 0.5
    gates += 0.5
    new = gates[:size] * kept[2 * size :]
    new += given[2 * size :]
    np.tanh(new, out=new)
    out: Array = h - new
    out *= gates[size:]
    out += new
    return out


PAST = WINDOW - HOP
"""Samples before a step's first sample that its first mel window reads."""
_LEVELS = 10  # 200 ms


@dataclass(frozen=True, slots=True)
class AudioStep:
    """One step of audio (20 ms) and the network's output for it.

    Attributes:
        power: mean power of the louder of its two mel windows.
        step: output of the network.
        state: input of `LipsRun`, float32[256].
        level_deviation_db: standard deviation of the level over the last 200 ms; before the first step the level is -120 dB.
    """

    power: float
    step: NetworkStep
    state: Array
    level_deviation_db: float


class SharedNetworkRun:
    """One run of the network that two readers share, so that each step is computed once. Not thread-safe.

    Each reader counts its own steps from 0. The first reader of a step computes it, the second gets the same result. So neither may
    be more than one step ahead of the other, and both must pass the same audio. A reader that stops may not come back.
    """

    def __init__(self, network: MouthNetwork) -> None:
        self._run = network.run()
        self._normaliser = Normaliser()
        self._levels = deque([-120.0] * _LEVELS, _LEVELS)
        self._number = -1
        self._latest: AudioStep | None = None

    @property
    def steps(self) -> int:
        """How many steps were computed."""
        return self._number + 1

    def step(self, number: int, window: NDArray[np.float32]) -> AudioStep:
        """Returns step `number` for `window`, float32[560] in -1 … 1: `PAST` samples before the step and its own 320.

        Raises `ValueError` for a step that is neither the latest nor the next.
        """
        if number == self._number and self._latest is not None:
            return self._latest
        if number != self._number + 1:
            raise ValueError(f"step {number} was requested after step {self._number}")
        windows = np.concatenate([window[:WINDOW], window[HOP:]]).reshape(2, WINDOW)
        powers = frame_powers(windows)
        mels = network_input(band_levels(windows), self._normaliser.levels(powers))
        one, other = powers.tolist()
        self._levels.append(10 * math.log10((one + other) / 2 + 1e-12))
        mean = sum(self._levels) / _LEVELS
        deviation = math.sqrt(sum((level - mean) ** 2 for level in self._levels) / _LEVELS)
        self._number, self._latest = (
            number,
            AudioStep(max(one, other), self._run.step(mels), self._run.state, deviation),
        )
        return self._latest
