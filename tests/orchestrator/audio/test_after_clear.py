"""What comes after a clear: the rest of what was interrupted is dropped, a live source is not muted for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.audio.segments import SegmentTracker

RATE = 16_000


def joe(peak_dbfs: float) -> np.ndarray:
    """Eight seconds of a voice; the pause at its end is cut off."""
    with np.load(Path(__file__).parents[2] / "data" / "spoken_joe.npz") as stored:
        coded = stored["mulaw"] / 127.5 - 1
    sound = np.sign(coded) * (256 ** np.abs(coded) - 1) / 255
    return np.round(sound / np.abs(sound).max() * 32767 * 10 ** (peak_dbfs / 20)).astype("<i2")[: 7 * RATE]


def floor(dbfs: float, seconds: float = 6) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 32768 * 10 ** (dbfs / 20), round(seconds * RATE)).astype("<i2")


def heard_from(sound: np.ndarray, pace: float = 1.0, block: int = 320) -> float | None:
    """Seconds of `sound`, sent at a multiple of real time after a clear in the middle of speech, that were dropped; None: all."""
    tracker, now = SegmentTracker(), 100.0
    tracker.push(joe(-6)[:RATE].tobytes(), RATE, now)
    tracker.clear(now)
    opened = tracker.opened
    for at in range(0, len(sound), block):
        assert tracker.dropping(now) or at == 0
        tracker.push(sound[at : at + block].tobytes(), RATE, now)
        if tracker.opened > opened:
            assert not tracker.dropping(now)
            return at / RATE
        now += block / RATE / pace
    return None


@pytest.mark.parametrize("dbfs", [-42, -30, -20])
def test_a_live_source_with_a_noise_floor_is_heard_again_after_a_second(dbfs: float) -> None:
    at = heard_from(floor(dbfs))
    assert at is not None and at <= 1.1


@pytest.mark.parametrize("peak", [-42, -20, -3])
def test_a_live_speaker_is_heard_again_after_a_second_and_not_before(peak: float) -> None:
    at = heard_from(joe(peak)[RATE // 2 :])
    assert at is not None and 0.9 <= at <= 1.1


def pauses(sound: np.ndarray) -> Iterator[float]:
    """Seconds at which 240 ms of near silence end."""
    levels = np.sqrt(np.mean(sound[: len(sound) // 320 * 320].reshape(-1, 320).astype(float) ** 2, axis=1))
    quiet = 0
    for step, level in enumerate(levels):
        quiet = quiet + 1 if level < levels.max() * 0.02 else 0
        if quiet >= 12:
            yield (step + 1) / 50


@pytest.mark.parametrize("peak", [-42, -20, -3])
@pytest.mark.parametrize("pace", [1.5, 4, 1000])
def test_the_rest_of_a_text_is_dropped_until_its_next_pause(peak: float, pace: float) -> None:
    sound = joe(peak)[RATE // 2 :]
    at = heard_from(sound, pace, block=1600)
    first_pause = next(pauses(joe(-3)[RATE // 2 :]), None)
    assert at is None or (first_pause is not None and at + 0.1 >= first_pause)  # in that block


def test_silence_is_noticed() -> None:
    at = heard_from(np.zeros(2 * RATE, "<i2"))
    assert at is not None and 0.2 < at <= 0.32
    at = heard_from(floor(-60, 2), pace=50)
    assert at is not None and at <= 0.7


def test_audio_start_and_a_pause_end_it_and_then_nothing_is_dropped() -> None:
    tracker = SegmentTracker()
    tracker.push(bytes(640), RATE, 0.0)
    tracker.clear(0.0)
    tracker.push(joe(-6)[:1600].tobytes(), RATE, 0.01)
    assert tracker.dropping(0.02) and not tracker.dropping(0.4)
    tracker.audio_start(0.05)
    assert not tracker.dropping(0.06)
    tracker.clear(0.1)
    tracker.push(joe(-6)[:1600].tobytes(), RATE, 0.11)
    opened = tracker.opened
    tracker.push(joe(-6)[:1600].tobytes(), RATE, 0.5)
    assert tracker.opened == opened + 1
