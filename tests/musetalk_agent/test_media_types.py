"""Samples and frames: integer arithmetic, checked over every rate that is allowed."""

from __future__ import annotations

import pytest

from musetalk_agent.media_types import Box, frame_start, frames_begun, frames_complete


@pytest.mark.parametrize("fps", range(15, 51))
def test_a_frame_begins_at_the_rounded_up_sample(fps: int) -> None:
    for frame in range(2000):
        start = frame_start(frame, fps)
        assert start * fps >= 16_000 * frame > (start - 1) * fps


@pytest.mark.parametrize("fps", [15, 24, 25, 29, 30, 50, 60])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
def test_counts_of_frames_agree_with_where_frames_begin(fps: int, rate: int) -> None:
    for samples in range(1, 3 * rate, 97):
        begun, complete = frames_begun(samples, fps, rate), frames_complete(samples, fps, rate)
        assert frame_start(begun - 1, fps, rate) < samples <= frame_start(begun, fps, rate)
        assert frame_start(complete, fps, rate) <= samples < frame_start(complete + 1, fps, rate)


def test_at_25_fps_a_frame_is_640_samples() -> None:
    assert [frame_start(k, 25) for k in range(4)] == [0, 640, 1280, 1920]
    assert frames_begun(18_560, 25) == 29  # upstream's float arithmetic gives 28 here


def test_an_even_box_holds_the_odd_one_and_stays_inside() -> None:
    assert Box(3, 5, 8, 9).even(100, 100) == Box(2, 4, 8, 10)
    assert Box(-3, 1, 101, 99).even(100, 100) == Box(0, 0, 100, 100)
