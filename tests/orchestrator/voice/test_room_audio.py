from __future__ import annotations

import numpy as np
import pytest

from orchestrator.voice.worker.room_audio import ROOM_RATE, SegmentSound


def tone(rate: int, seconds: float, hz: float = 997.0) -> np.ndarray:
    return (np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate) * 16_000).astype("<i2")


def of(rate: int, pcm: np.ndarray, start: int = 0) -> SegmentSound:
    sound = SegmentSound(1, rate, start)
    sound.append(start, pcm.tobytes())
    return sound


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_a_tone_comes_out_at_48_khz_where_it_was(rate: int) -> None:
    sound = of(rate, tone(rate, 0.5))
    sound.ended = True
    assert sound.ready == ROOM_RATE // 2
    made = sound.take(0, sound.ready)[480:-480]
    ideal = tone(ROOM_RATE, 0.5).astype(np.float64)[480:-480]
    error = made - ideal
    assert 10 * np.log10(np.sum(ideal**2) / (np.sum(error**2) + 1)) > 70


def test_any_part_is_the_same_as_that_part_of_the_whole() -> None:
    whole, parts = of(16000, tone(16000, 0.3)), of(16000, tone(16000, 0.3))
    assert whole.ready == pytest.approx(ROOM_RATE * 0.3, abs=60)  # a millisecond is held back until the end
    made = whole.take(0, whole.ready)
    for position, count in ((0, 1), (5, 480), (7001, 333), (whole.ready - 10, 10)):
        assert np.array_equal(parts.take(position, count), made[position : position + count])


def test_a_segment_that_begins_late_agrees_with_one_that_has_everything() -> None:
    pcm = tone(22050, 0.4)
    whole, late = of(22050, pcm), of(22050, pcm[5000:], 5000)
    assert late.begin == -(-5000 * ROOM_RATE // 22050)
    assert np.allclose(late.take(late.begin + 200, 1000), whole.take(late.begin + 200, 1000), atol=0.01)


def test_what_was_said_is_let_go_and_what_comes_twice_is_taken_once() -> None:
    pcm = tone(16000, 1.0)
    sound = of(16000, pcm)
    expected = sound.take(24_000, 960)
    sound.forget(24_000)
    assert sound.begin > 23_000
    sound.append(8000, pcm[8000:].tobytes())
    assert np.array_equal(sound.take(24_000, 960), expected)
    with pytest.raises(ValueError, match="16000 to 16001 are missing"):
        sound.append(16_001, b"\0\0")
