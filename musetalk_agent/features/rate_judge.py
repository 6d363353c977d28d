"""Tells from its sound at which rate speech was recorded: only at its own rate does it sound like speech.

The mouth network is surest of its phonemes (the lowest entropy) where speech has the speed and the pitch it was trained on. The
sound is therefore read at every common rate; figures in docs/topics/silence.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from musetalk_agent.features import melspec
from musetalk_agent.features.articulation import SILENCE
from musetalk_agent.features.mouth_network import MouthNetwork
from musetalk_agent.media import FEATURE_RATE, Pcm
from musetalk_agent.resample import Resampler

RATES = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)
"""What microphones, telephones and voices have."""
_NEAR = 0.2  # rates nearer than this to the declared one are not told from it
_LEAST_S = 1.5  # of speech
_WRONG_NATS = 0.22  # by which another rate must be surer than the declared one, for it to be wrong
_RIGHT_NATS = 0.05  # and the declared one than every other, for it to be right
_SPEECH = 0.5
_STEPS = 24
"""Steps of the network between two rests: about 1 ms, in which the interpreter's lock is held."""


def judge_rate(network: MouthNetwork, sound: Pcm, declared: int, rest: Callable[[], None] = lambda: None) -> int | None:
    """The rate of int16 `[n]` that was declared as `declared` Hz: that, another one, or None where it is open.

    Takes about 3 ms of one core for each second of sound and each rate, most of it in Python: for a thread of its own, which calls
    `rest` every millisecond so that other threads get the interpreter's lock.
    """
    others = [rate for rate in RATES if abs(rate / declared - 1) > _NEAR]
    doubt = {rate: _doubt(network, sound, rate, rest) for rate in (declared, *others)}
    best = min(others, key=lambda rate: doubt[rate])
    if doubt[best] < doubt[declared] - _WRONG_NATS:
        return best
    if doubt[declared] < doubt[best] - _RIGHT_NATS:
        return declared
    return None


def _doubt(network: MouthNetwork, sound: Pcm, rate: int, rest: Callable[[], None]) -> float:
    """Mean entropy of the phonemes (nats) where speech is heard, when the sound is taken to have `rate`; infinite without any."""
    resampler, run = Resampler(rate, FEATURE_RATE), network.run()
    mels, _ = melspec.whole(np.concatenate([resampler.push(sound), resampler.flush()]))
    mels = mels[: len(mels) // 2 * 2]
    found: list[float] = []
    for at in range(0, len(mels), 2 * _STEPS):
        rest()
        phonemes, speech = run.said(mels[at : at + 2 * _STEPS])
        heard = phonemes[(speech > _SPEECH) & (phonemes[:, SILENCE] < _SPEECH)]
        found += (-np.sum(heard * np.log(heard + 1e-9), axis=1)).tolist()
    return float(np.mean(found)) if len(found) >= _LEAST_S * 50 * FEATURE_RATE / rate / 2 else float("inf")
