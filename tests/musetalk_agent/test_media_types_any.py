"""Media time is exact at every rate: frames and samples, boxes, and the resampler, whatever the numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.media_types import Box, frame_start, frames_begun, frames_complete
from musetalk_agent.resample import HALF_WIDTH, Resampler

RATES = st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
FPS = st.integers(1, 60)


@given(st.integers(0, 10**7), FPS, RATES)
def test_a_frame_begins_with_the_first_sample_that_is_not_before_it(frame: int, fps: int, rate: int) -> None:
    start = frame_start(frame, fps, rate)
    moment = Fraction(frame, fps)
    assert Fraction(start, rate) >= moment > Fraction(start - 1, rate)


@given(st.integers(0, 10**9), FPS, RATES)
def test_frames_that_have_begun_and_are_complete_are_those_of_the_samples(samples: int, fps: int, rate: int) -> None:
    begun, complete = frames_begun(samples, fps, rate), frames_complete(samples, fps, rate)
    assert begun == math.ceil(Fraction(samples * fps, rate))
    assert frame_start(complete, fps, rate) <= samples < frame_start(complete + 1, fps, rate)
    assert complete <= begun <= complete + 1


@given(st.integers(0, 10**6), FPS, RATES)
def test_a_segment_of_whole_frames_has_those_frames_and_no_more(frame: int, fps: int, rate: int) -> None:
    start = frame_start(frame, fps, rate)
    assert (
        frames_begun(start, fps, rate) == frame or rate * frame % fps
    )  # a sample that two frames share counts for the later
    assert frames_complete(start, fps, rate) == frame


@given(*(st.integers(-50, 400) for _ in range(4)), st.integers(1, 150), st.integers(1, 150))
def test_an_even_box_is_the_smallest_around_within_the_picture(
    x: int, y: int, right: int, below: int, half_width: int, half_height: int
) -> None:
    width, height = 2 * half_width, 2 * half_height
    box = Box(x, y, max(x, right), max(y, below))
    even = box.even(width, height)
    assert all(edge % 2 == 0 for edge in (even.x0, even.y0, even.x1, even.y1))
    assert even.x0 >= 0 and even.y0 >= 0 and even.x1 <= width and even.y1 <= height
    inside = Box(max(0, box.x0), max(0, box.y0), min(width, box.x1), min(height, box.y1))
    assert even.x0 <= inside.x0 < even.x0 + 2 and even.y0 <= inside.y0 < even.y0 + 2
    assert even.x1 - 2 < inside.x1 <= even.x1 and even.y1 - 2 < inside.y1 <= even.y1


@given(RATES, RATES, st.lists(st.integers(0, 700), max_size=20), st.integers(0, 2**32 - 1))
def test_the_resampler_gives_the_same_samples_whatever_the_pieces(
    source: int, target: int, sizes: list[int], seed: int
) -> None:
    pcm = np.random.default_rng(seed).integers(-32_768, 32_768, sum(sizes)).astype(np.int16)
    whole, pieces = Resampler(source, target), Resampler(source, target)
    expected = np.concatenate([whole.push(pcm), whole.flush()])
    made, at = [], 0
    for size in sizes:
        made.append(pieces.push(pcm[at : at + size]))
        at += size
        have = sum(map(len, made))
        assert have <= math.ceil(Fraction(at * target, source))  # nothing is made of what has not come
        held_back = Fraction(at, source) - Fraction(have, target)
        assert held_back <= Fraction(HALF_WIDTH + 2, min(source, target))  # 2 ms at 8 kHz, the lowest rate
    made.append(pieces.flush())
    assert np.array_equal(np.concatenate(made), expected)
    assert len(expected) == math.ceil(Fraction(len(pcm) * target, source))


@given(RATES, RATES, st.integers(-32_768, 32_767))
def test_a_level_stays_what_it_is(source: int, target: int, level: int) -> None:
    resampler = Resampler(source, target)
    made = resampler.push(np.full(2000, level, np.int16))
    assert np.abs(made[200:].astype(int) - level).max(initial=0) <= 1


@pytest.mark.parametrize(("source", "target"), [(8_000, 48_000), (48_000, 8_000), (44_100, 16_000)])
def test_full_scale_is_clipped_and_never_wraps_around(source: int, target: int) -> None:
    resampler = Resampler(source, target)
    square = np.where(np.arange(4000) // 40 % 2, 32_767, -32_768).astype(np.int16)
    made = np.concatenate([resampler.push(square), resampler.flush()])
    middle = made[np.arange(len(made)) * source // target % 40 == 20]  # far from the edges the sign is the square's
    signs = np.arange(len(made)) * source // target // 40 % 2
    wanted = np.where(signs[np.arange(len(made)) * source // target % 40 == 20], 1, -1)
    assert (np.sign(middle) == wanted).all()
