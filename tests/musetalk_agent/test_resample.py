"""The resampler: exact in time, whatever the chunks."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent import resample
from musetalk_agent.resample import Resampler

PAIRS = [(16000, 48000), (48000, 16000), (22050, 16000), (22050, 48000), (44100, 16000), (8000, 48000), (16000, 16000)]


def _tone(rate: int, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    return (10_000 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.int16)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_any_chunking_gives_the_same_samples(source: int, target: int) -> None:
    tone = _tone(source)
    whole = Resampler(source, target)
    expected = np.concatenate([whole.push(tone), whole.flush()])
    rng = np.random.default_rng(1)
    parts, at, chunked = [], 0, Resampler(source, target)
    while at < len(tone):
        size = int(rng.integers(1, 900))
        parts.append(chunked.push(tone[at : at + size]))
        at += size
    assert np.array_equal(np.concatenate([*parts, chunked.flush()]), expected)
    assert len(expected) == -(-len(tone) * target // source)


@pytest.mark.parametrize("size", [1, 2, 37, 320])
@pytest.mark.parametrize(("source", "target"), [*PAIRS, (24000, 16000), (24000, 48000)])
def test_few_phases_are_taken_one_by_one_to_the_same_samples(
    source: int, target: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = np.random.default_rng(2).integers(-32768, 32768, 2_000).astype(np.int16)
    made = []
    for few in (0, 1_000):
        monkeypatch.setattr(resample, "_FEW_PHASES", few)
        one = Resampler(source, target)
        parts = [one.push(sound[at : at + size]) for at in range(0, len(sound), size)]
        made.append(np.concatenate([*parts, one.flush()]))
    assert np.array_equal(*made)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_tone_keeps_its_phase_and_level(source: int, target: int) -> None:
    resampler = Resampler(source, target)
    made = np.concatenate([resampler.push(_tone(source)), resampler.flush()]).astype(float)
    ideal = 10_000 * np.sin(2 * np.pi * 440 * np.arange(len(made)) / target)
    error = (made - ideal)[200:-200]
    assert 20 * np.log10(7071 / error.std()) > 70


@pytest.mark.parametrize(("source", "target"), [(16000, 48000), (48000, 16000), (22050, 48000)])
def test_it_holds_back_little_more_than_a_millisecond(source: int, target: int) -> None:
    made = Resampler(source, target).push(_tone(source, 0.5))
    assert 0.5 - len(made) / target < 0.0022


def test_what_the_target_cannot_carry_is_removed() -> None:
    resampler = Resampler(48000, 16000)
    made = np.concatenate([resampler.push(_tone(48000, hz=12_000)), resampler.flush()])
    assert np.abs(made[200:-200]).max() < 30
