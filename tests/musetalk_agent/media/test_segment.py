"""A segment resamples a little ahead of its readers, whatever comes at once, and its readers get the same samples."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.media.segment import GRAIN, ROOM_RATE, Segment
from musetalk_agent.media_types import FEATURE_RATE, Pcm
from musetalk_agent.resample import Resampler

FPS = 25


def noise(seconds: float, rate: int) -> Pcm:
    return np.random.default_rng(7).integers(-8000, 8000, round(seconds * rate)).astype(np.int16)


def converted(pcm: Pcm, rate: int, to: int) -> Pcm:
    resampler = Resampler(rate, to)
    return np.concatenate([resampler.push(pcm), resampler.flush()])


def read(segment: Segment) -> tuple[Pcm, Pcm]:
    """Reads both sides to the end, as playback and production do; the features run ahead of the sound."""
    room, features = [np.zeros(0, np.int16)], [np.zeros(0, np.int16)]
    while not segment.enqueued_all or len(segment.for_features):
        features.append(segment.take_features(FEATURE_RATE // 5))
        room += [block for _ in range(5) if (block := segment.take_block()) is not None]
    return np.concatenate(room), np.concatenate(features)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_a_long_push_is_read_as_if_it_had_come_in_pieces(rate: int) -> None:
    pcm = noise(7.3, rate)
    segment = Segment(1, 0, rate, FPS)
    segment.push(pcm, 1.0)
    segment.end(2.0)
    room, features = read(segment)
    expected = converted(pcm, rate, ROOM_RATE)
    np.testing.assert_array_equal(features, converted(pcm, rate, FEATURE_RATE))
    np.testing.assert_array_equal(room[: len(expected)], expected)
    assert not room[len(expected) :].any() and len(room) == segment.room_samples
    assert segment.frames == 183  # ceil(7.3 * 25)
    assert list(segment.arrivals.times) == [1.0] * 182 + [2.0]  # the last frame was complete with the end


def test_what_comes_at_once_is_resampled_as_it_is_read() -> None:
    segment = Segment(1, 0, 16_000, FPS)
    segment.push(noise(60, 16_000), 0.0)
    segment.end(0.0)
    for _ in range(20):
        assert len(segment.for_room) <= 1.2 * ROOM_RATE and len(segment.for_features) <= 1.2 * FEATURE_RATE
        assert not segment.ended and segment.duration_s == 60 and segment.has_block
        segment.take_block()
        segment.take_features(40 * FEATURE_RATE // 1000)


def test_a_reader_that_lags_never_starves_the_other() -> None:
    """The voice waits for its first picture: features are read alone, and must come."""
    segment = Segment(1, 0, 16_000, FPS)
    segment.push(noise(5, 16_000), 0.0)
    segment.end(0.0)
    taken = 0
    while len(samples := segment.take_features(3200)):
        taken += len(samples)
    assert taken == 5 * FEATURE_RATE and segment.ended and not segment.enqueued_all


@pytest.mark.parametrize("blocks", [0, 3, 60])
def test_a_rewind_keeps_what_was_not_resampled_yet(blocks: int) -> None:
    pcm = noise(9, 16_000)
    segment = Segment(1, 0, 16_000, FPS)
    segment.push(pcm[:80_000], 0.0)
    segment.origin = 0
    for _ in range(blocks):
        segment.take_block()
        segment.take_features(640)
    heard = max(0, segment.enqueued - 2 * GRAIN)
    rest = segment.rest(heard, 1)
    rest.push(pcm[80_000:], 1.0)
    rest.end(1.0)
    room, features = read(rest)
    expected = converted(pcm, 16_000, ROOM_RATE)[heard:]
    np.testing.assert_array_equal(room[: len(expected)], expected)
    np.testing.assert_array_equal(features, pcm[heard // 3 :])
    assert rest.duration_s == 9
