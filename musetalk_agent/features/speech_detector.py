"""Voice activity detection, 20 ms at a time, from the mouth network of the `warp` engine and the rise of the level.

The network separates whispers and quiet speakers from noise of the same level. Its output describes the moment 100 ms ago and is
often sure after 60 ms. A rise of the level over the background is known after 40 ms, so together with weak support of the network
it marks the beginning of a word earlier. Figures, and a comparison with other detectors: docs/explanation/silence.md.

`detect_rate` detects the true sample rate of PCM that was declared with a wrong one. The network is surest of its phonemes (lowest
entropy) when speech has the speed and pitch it was trained on. So it runs the network at each common rate and compares.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features import mouth_network
from musetalk_agent.features.mouth_network import PAST as _PAST
from musetalk_agent.features.mouth_network import STEP, AudioStep, MouthNetwork, SharedNetworkRun, default_weights
from musetalk_agent.features.phonemes import SILENCE
from musetalk_agent.media_types import FEATURE_RATE, Pcm
from musetalk_agent.resample import Resampler

LEVEL_DBFS = -55.0
"""RMS of 20 ms below which `LevelDetector` reports silence."""
# RMS of 20 ms below which nothing is speech: a speaker whose loudest peak is -42 dBFS stays above it
_FLOOR_DBFS = -68.0
_SPEECH = 0.2  # speech output of the network from which a step is speech
_SUPPORT = 0.05  # speech output from which a rise of the level is speech: key strokes stay below it
_ABOVE_DB = 8.0  # a step must be this far above the background: the network is sure that some machine rumble is speech
_RISE_DB = 9.0
_RISE_DBFS = -62.0  # a rise must end above this level
_RISE_STEPS = 2  # a key stroke lasts one step
_RISEN_STEPS = 8  # a level that stays up for longer is not the beginning of a word
_BACKGROUND_STEPS = 100  # the background is the quietest tenth of the last 2 s: speech falls that far between words
_BACKGROUND_PART = 10
_STEADY_DB = 0.45  # standard deviation of the level over 200 ms; hum and white noise are below it (see `visemes`)
_SLEEP_STEPS = 20  # after this many steps near the background the network is not run
_WARM_STEPS = 15  # past steps that the network reads first when it runs again


class SpeechDetector:
    """Returns one verdict for each 20 ms of a segment; chunking does not change it.

    A step costs about 0.15 ms of one core, and 0.01 ms in silence, hum and steady noise, where the network does not run.

    Args:
        network: shared and immutable.
        shared_run: a new run that the segment's feature stream also uses (see `SharedNetworkRun`); None for a run of its own.
    """

    def __init__(self, network: MouthNetwork, shared_run: SharedNetworkRun | None = None) -> None:
        self._network = network
        self._samples = np.zeros(_PAST, np.float32)  # the last samples in -1 … 1; the first `_PAST` are already used
        self._recent: deque[float] = deque(maxlen=_BACKGROUND_STEPS)  # levels
        self._windows: deque[NDArray[np.float32]] = deque(maxlen=_WARM_STEPS)  # since the network ran last
        self._risen = self._quiet = self._near = 0
        self._run, self._step_number = shared_run or SharedNetworkRun(network), 0

    @classmethod
    def shipped(cls) -> SpeechDetector:
        """Returns a detector with the shipped network, which is read once per process. Raises `WeightsMissing`."""
        return cls(shipped_network())

    def push(self, samples: Pcm) -> list[bool]:
        """Takes int16[n] at 16 kHz; returns for each 20 ms that is now complete whether it is speech."""
        self._samples = np.concatenate([self._samples, samples.astype(np.float32) / np.float32(32768)])
        verdicts, at = [], 0
        while at + _PAST + STEP <= len(self._samples):
            verdicts.append(self._step(self._samples[at : at + _PAST + STEP]))
            at += STEP
        self._samples = self._samples[at:].copy()
        return verdicts

    @property
    def silent(self) -> bool:
        """Whether the last 20 ms were below the level of any speech."""
        return self._quiet > 0

    def share(self, run: SharedNetworkRun) -> None:
        """Goes on with the run of a stream that has taken exactly the steps that the detector has, from an earlier one on."""
        self._run, self._step_number = run, run.steps
        self._windows.clear()

    def _step(self, window: NDArray[np.float32]) -> bool:
        new = window[_PAST:]
        level = 10 * float(np.log10(float(np.dot(new, new)) / STEP + 1e-12))
        self._recent.append(level)
        background = sorted(self._recent)[len(self._recent) // _BACKGROUND_PART]
        above = level > background + _ABOVE_DB
        self._risen = self._risen + 1 if level > max(background + _RISE_DB, _RISE_DBFS) else 0
        self._quiet = self._quiet + 1 if level < _FLOOR_DBFS else 0
        self._near = 0 if above and not self._quiet else self._near + 1
        if self._near > _SLEEP_STEPS:
            self._windows.append(window.copy())
            self._step_number += 1
            return False
        if self._windows:  # the level rises again
            if self._run.steps != self._step_number:  # no stream has gone on with the run meanwhile
                self._run, self._step_number = SharedNetworkRun(self._network), 0
                for past in self._windows:
                    self._run_network(past)
            self._windows.clear()
        audio = self._run_network(window)
        if self._quiet:
            return False
        moving, speech = audio.level_deviation_db > _STEADY_DB, audio.step.speech
        rises = _RISE_STEPS <= self._risen <= _RISEN_STEPS and speech > _SUPPORT
        return (moving and above and speech > _SPEECH) or rises

    def _run_network(self, window: NDArray[np.float32]) -> AudioStep:
        self._step_number += 1
        return self._run.step(self._step_number - 1, window)


class LevelDetector:
    """Reports each 20 ms whose RMS reaches a level (dBFS)."""

    def __init__(self, dbfs: float = LEVEL_DBFS) -> None:
        self._power = (32768 * 10 ** (dbfs / 20)) ** 2
        self._samples: Pcm = np.zeros(0, np.int16)

    def push(self, samples: Pcm) -> list[bool]:
        """Takes int16[n] at 16 kHz; returns one verdict for each 20 ms that is now complete."""
        samples = np.concatenate([self._samples, samples])
        whole = len(samples) // STEP
        self._samples = samples[whole * STEP :]
        powers = np.mean(samples[: whole * STEP].reshape(whole, STEP).astype(np.float64) ** 2, axis=1)
        verdicts: list[bool] = (powers >= self._power).tolist()
        return verdicts


@functools.cache
def shipped_network() -> MouthNetwork:
    """Returns the shipped network, read once per process. Raises `WeightsMissing`."""
    return MouthNetwork.load(default_weights())


RATES = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)
"""Rates of microphones, telephones and TTS voices, in Hz."""
_NEAR = 0.2  # a rate nearer than this (relative) to the declared one cannot be distinguished from it
_LEAST_S = 1.5  # of speech
_WRONG_NATS = 0.22  # entropy margin by which another rate must win for the declared one to be wrong
_RIGHT_NATS = 0.05  # margin by which the declared rate must win to be right
_SPEECH_PROBABILITY = 0.5
_STEPS = 24
"""Steps of the network between two calls of `pause`: about 1 ms with the interpreter's lock held."""


def detect_rate(
    network: MouthNetwork, audio: Pcm, declared: int, pause: Callable[[], None] = lambda: None
) -> int | None:
    """Returns the likely rate in Hz of int16 `[n]` that was declared as `declared` Hz, or None when it is undecided.

    Takes about 3 ms of one core for each second of audio and each rate, most of it in Python. Call it in its own thread; `pause`
    is called about every millisecond so that other threads get the interpreter's lock.
    """
    others = [rate for rate in RATES if abs(rate / declared - 1) > _NEAR]
    entropy = {rate: _entropy(network, audio, rate, pause) for rate in (declared, *others)}
    best = min(others, key=lambda rate: entropy[rate])
    if entropy[best] < entropy[declared] - _WRONG_NATS:
        return best
    if entropy[declared] < entropy[best] - _RIGHT_NATS:
        return declared
    return None


def _entropy(network: MouthNetwork, audio: Pcm, rate: int, pause: Callable[[], None]) -> float:
    """Returns the mean phoneme entropy (nats) of the speech when the audio is read at `rate`; infinite without speech."""
    resampler, run = Resampler(rate, FEATURE_RATE), network.run()
    mels, _ = mouth_network.log_mels(np.concatenate([resampler.push(audio), resampler.flush()]))
    mels = mels[: len(mels) // 2 * 2]
    found: list[float] = []
    for at in range(0, len(mels), 2 * _STEPS):
        pause()
        phonemes, speech = run.batch(mels[at : at + 2 * _STEPS])
        heard = phonemes[(speech > _SPEECH_PROBABILITY) & (phonemes[:, SILENCE] < _SPEECH_PROBABILITY)]
        found += (-np.sum(heard * np.log(heard + 1e-9), axis=1)).tolist()
    return float(np.mean(found)) if len(found) >= _LEAST_S * 50 * FEATURE_RATE / rate / 2 else float("inf")
