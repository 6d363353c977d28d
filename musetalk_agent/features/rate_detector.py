"""Detects the true sample rate of PCM that was declared with a wrong one.

The mouth network is surest of its phonemes (lowest entropy) when speech has the speed and pitch it was trained on. So the detector
runs the network at each common rate and compares. Figures: docs/explanation/silence.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from musetalk_agent.features import melspec
from musetalk_agent.features.articulation import SILENCE
from musetalk_agent.features.mouth_network import MouthNetwork
from musetalk_agent.media_types import FEATURE_RATE, Pcm
from musetalk_agent.resample import Resampler

RATES = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)
"""Rates of microphones, telephones and TTS voices, in Hz."""
_NEAR = 0.2  # a rate nearer than this (relative) to the declared one cannot be distinguished from it
_LEAST_S = 1.5  # of speech
_WRONG_NATS = 0.22  # entropy margin by which another rate must win for the declared one to be wrong
_RIGHT_NATS = 0.05  # margin by which the declared rate must win to be right
_SPEECH = 0.5
_STEPS = 24
"""Steps of the network between two calls of `pause`: about 1 ms with the interpreter's lock held."""


def detect_rate(
    network: MouthNetwork, sound: Pcm, declared: int, pause: Callable[[], None] = lambda: None
) -> int | None:
    """Returns the likely rate in Hz of int16 `[n]` that was declared as `declared` Hz, or None when it is undecided.

    Takes about 3 ms of one core for each second of audio and each rate, most of it in Python. Call it in its own thread; `pause`
    is called about every millisecond so that other threads get the interpreter's lock.
    """
    others = [rate for rate in RATES if abs(rate / declared - 1) > _NEAR]
    entropy = {rate: _entropy(network, sound, rate, pause) for rate in (declared, *others)}
    best = min(others, key=lambda rate: entropy[rate])
    if entropy[best] < entropy[declared] - _WRONG_NATS:
        return best
    if entropy[declared] < entropy[best] - _RIGHT_NATS:
        return declared
    return None


def _entropy(network: MouthNetwork, sound: Pcm, rate: int, pause: Callable[[], None]) -> float:
    """Returns the mean phoneme entropy (nats) of the speech when the audio is read at `rate`; infinite without speech."""
    resampler, run = Resampler(rate, FEATURE_RATE), network.run()
    mels, _ = melspec.whole(np.concatenate([resampler.push(sound), resampler.flush()]))
    mels = mels[: len(mels) // 2 * 2]
    found: list[float] = []
    for at in range(0, len(mels), 2 * _STEPS):
        pause()
        phonemes, speech = run.batch(mels[at : at + 2 * _STEPS])
        heard = phonemes[(speech > _SPEECH) & (phonemes[:, SILENCE] < _SPEECH)]
        found += (-np.sum(heard * np.log(heard + 1e-9), axis=1)).tolist()
    return float(np.mean(found)) if len(found) >= _LEAST_S * 50 * FEATURE_RATE / rate / 2 else float("inf")
