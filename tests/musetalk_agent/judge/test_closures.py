"""Closures: a text is found in phonemes that are made up, and mouths that close or do not are distinguished."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from musetalk_agent.features.phonemes import CLASSES
from musetalk_agent.judge.closures import closures, lip_sounds
from musetalk_agent.judge.film_report import Verdict

SAID = ["sil", "m", "a", "m", "a", "sil", "pb", "i", "sil"]
EACH = 10  # steps of 20 ms


class Network:
    """Gives the phonemes that it is given, whatever the sound is."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def run(self) -> Any:
        def batch(mels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            phonemes = np.full((len(mels) // 2, len(CLASSES)), 0.01, np.float32)
            for k, name in enumerate(self._said):
                phonemes[k * EACH : (k + 1) * EACH, CLASSES.index(name)] = 0.76
            return phonemes, np.ones(len(phonemes), np.float32)

        return SimpleNamespace(batch=batch)


VOICE = np.zeros(len(SAID) * EACH * 320, np.int16)


def test_the_lip_sounds_of_a_text_are_found_where_they_are_heard() -> None:
    found = lip_sounds("Mama, be!", VOICE, Network(SAID))  # type: ignore[arg-type]  # it has the one method that is called
    assert found is not None and len(found) == 3
    for (begin, end), first in zip(found, (1, 3, 6), strict=True):
        assert begin == pytest.approx(first * 0.2 - 0.08, abs=0.04)
        assert end == pytest.approx(first * 0.2 + 0.2 - 0.08, abs=0.04)


def test_a_letter_that_is_not_heard_counts_for_nothing_and_long_texts_are_not_aligned() -> None:
    network: Any = Network(SAID)
    deaf: Any = Network(["n" if name == "m" else name for name in SAID])
    assert lip_sounds("", VOICE, network) == []
    assert lip_sounds("nana", VOICE, network) == []
    silent = lip_sounds("mama be", VOICE, deaf)
    assert silent is not None and len(silent) == 1
    assert lip_sounds("mama " * 1000, VOICE, network) is None


@pytest.mark.parametrize(("closing", "verdict"), [(5, Verdict.PASSED), (2, Verdict.PASSED), (1, Verdict.FAILED)])
def test_the_share_of_sounds_at_which_the_mouth_closes_is_held_against_its_bar(closing: int, verdict: Verdict) -> None:
    times = np.arange(0, 10, 0.04)
    opening = 0.06 + 0.03 * np.sin(times * 9)
    sounds = [(1.0 + k, 1.1 + k) for k in range(5)]
    for k, (begin, end) in enumerate(sounds):
        opening[(times >= begin - 0.06) & (times <= end + 0.06)] = 0.01 if k < closing else 0.08
    found = closures(times, opening, sounds)
    assert found.verdict is verdict and found.value == pytest.approx(closing / 5)
    assert len(found.worst) == (5 - closing)
    assert closures(times, opening, sounds[:3]).verdict is Verdict.NOT_JUDGED
    assert closures(times, np.full(len(times), np.nan), sounds).verdict is Verdict.NOT_JUDGED
