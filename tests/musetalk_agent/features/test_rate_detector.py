"""The judge of sample rates: what it concludes from how sure a network is at each rate; here it is as sure as a test says."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.features.mouth_network import MouthNetwork
from musetalk_agent.features.phonemes import CLASSES
from musetalk_agent.features.speech_detector import RATES, detect_rate

SOUND = np.zeros(13_000, np.int16)  # a second and a half of speech have 12,000 samples, whatever their rate


def posteriors(nats: float) -> np.ndarray:
    """Phonemes, none of them silence, of this entropy: one that is likely and the others alike."""
    low, high = 0.0, 1 - 1 / 24
    for _ in range(60):  # bisection: the entropy grows with the share of the others
        others = (low + high) / 2
        entropy = -(1 - others) * math.log(1 - others) - others * math.log(others / 23 + 1e-300)
        low, high = (others, high) if entropy < nats else (low, others)
    made = np.full(len(CLASSES), low / 23, np.float32)
    made[0], made[1] = 0.0, 1 - low
    return made


class Sure:
    """A network whose runs are, one after the other, as unsure as it is said (nats); None hears no speech.

    The judge reads the declared rate first, and then the others that are not near it, in their order.
    """

    def __init__(self, declared: int, doubts: dict[int, float | None]) -> None:
        order = [declared, *(rate for rate in RATES if abs(rate / declared - 1) > 0.2)]
        self._doubts = [doubts.get(rate, 2.0) for rate in order]
        self.runs = self.steps = 0

    def run(self) -> Sure:
        self._now = self._doubts[self.runs]
        self._phonemes = posteriors(1.0 if self._now is None else self._now)
        self.runs += 1
        return self

    def batch(self, mels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = len(mels) // 2
        self.steps += steps
        return np.tile(self._phonemes, (steps, 1)), np.full(steps, 0.0 if self._now is None else 1.0)


def judged(declared: int, doubts: dict[int, float | None]) -> int | None:
    return detect_rate(cast(MouthNetwork, Sure(declared, doubts)), SOUND, declared)


@pytest.mark.parametrize(
    ("declared", "doubts", "rate"),
    [
        (16_000, {16_000: 0.5}, 16_000),
        (16_000, {16_000: 1.0, 48_000: 0.5}, 48_000),
        (16_000, {16_000: 1.0, 48_000: 0.9}, None),
        (16_000, {16_000: 1.0, 48_000: 0.77}, 48_000),
        (16_000, {16_000: 1.0, 48_000: 0.79}, None),
        (16_000, {16_000: 1.0, 48_000: 1.04}, None),
        (16_000, {16_000: 1.0, 48_000: 1.06}, 16_000),
        (16_000, {16_000: 1.5, 8_000: 1.0, 24_000: 0.9}, 24_000),
        (48_000, {48_000: 1.5, 16_000: 0.5, 44_100: 0.1}, 16_000),
        (22_050, {22_050: 1.5, 24_000: 0.1}, 22_050),
        (16_000, {16_000: None, 24_000: 0.5}, 24_000),
        (16_000, {16_000: 0.5, **{rate: None for rate in RATES if rate != 16_000}}, 16_000),
        (16_000, dict.fromkeys(RATES), None),
    ],
)
def test_a_rate_is_wrong_when_another_one_is_much_surer_and_right_when_none_is_as_sure(
    declared: int, doubts: dict[int, float | None], rate: int | None
) -> None:
    """Rates that are not named have two nats of doubt; 44.1 and 48 kHz, or 22.05 and 24, are not doubt apart."""
    assert judged(declared, doubts) == rate


DOUBTS = st.fixed_dictionaries({rate: st.floats(0.1, 3) for rate in RATES})


@given(st.sampled_from(RATES), DOUBTS)
@settings(max_examples=30)
def test_what_is_named_is_the_surest_rate_or_the_declared_one(declared: int, doubts: dict[int, float | None]) -> None:
    rate = judged(declared, doubts)
    doubt = {one: doubt for one, doubt in doubts.items() if doubt is not None}
    others = {one: doubt for one, doubt in doubt.items() if abs(one / declared - 1) > 0.2}
    surest = min(others.values())
    if rate is not None and rate != declared:
        assert others[rate] == pytest.approx(surest) and surest < doubt[declared] - 0.2
    elif rate == declared:
        assert doubt[declared] < surest
    else:
        assert -0.06 < doubt[declared] - surest < 0.23


def test_too_little_speech_says_nothing() -> None:
    network = Sure(16_000, {16_000: 0.1})
    assert detect_rate(cast(MouthNetwork, network), SOUND[:11_000], 16_000) is None
    assert detect_rate(cast(MouthNetwork, Sure(16_000, {})), SOUND[:0], 16_000) is None


def test_it_pauses_every_few_steps_so_that_other_threads_run() -> None:
    rests = 0

    def pause() -> None:
        nonlocal rests
        rests += 1

    network = Sure(16_000, {16_000: 0.5})
    detect_rate(cast(MouthNetwork, network), SOUND, 16_000, pause)
    assert network.runs == 6 and network.steps / 24 <= rests <= network.steps / 24 + network.runs
