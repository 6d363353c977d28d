"""When the SFU was last heard of, what was heard by then, and pictures made smaller."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.media.playout import PlayoutHistory
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.publishers.livekit.stats import Liveness, TransportStats
from musetalk_agent.publishers.livekit.video_track import smaller

WALL_MS = 1.8e12


def reading(packets: int, at: float, frames: int = 0, reports: int = 0) -> TransportStats:
    """`at` in seconds after the test's beginning."""
    return TransportStats(
        packets_received=packets, received_at_ms=WALL_MS + 1000 * at, frames_sent=frames, reports=reports
    )


def polled(readings: list[TransportStats | None], every_s: float = 0.2, *, step_s: float = 0.0) -> Liveness:
    """`step_s`: the wall clock jumps by so much before the last poll."""
    made, now = Liveness(0.0), 0.0
    for index, one in enumerate(readings):
        now += every_s
        jump = step_s if index == len(readings) - 1 else 0.0
        made.note(one, now, WALL_MS + 1000 * (now + jump))
    return made


def test_silence_begins_with_the_last_packet_and_not_with_the_last_look() -> None:
    made = polled([reading(10, 0.15), reading(20, 0.31), reading(20, 0.31), reading(20, 0.31)])
    assert made.heard_at == pytest.approx(0.31) and made.silent_s == pytest.approx(0.49)


def test_no_statistics_are_silence() -> None:
    made = polled([reading(10, 0.15), None, None, None, None])
    assert made.silent_s == pytest.approx(0.85)


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_wall_clock_that_jumps_does_no_harm(step_s: float) -> None:
    made = polled([reading(10, 0.15), reading(20, 0.35)], step_s=step_s)
    assert 0.2 <= made.heard_at <= 0.4


def test_counts_that_begin_anew_are_life() -> None:
    made = polled([reading(100, 0.1), reading(100, 0.1), reading(3, 0.55)])
    assert made.silent_s == pytest.approx(0.05)


def test_pictures_that_nobody_acknowledges_are_silence() -> None:
    answered = [reading(10 * i, 0.2 * i, frames=5 * i, reports=i // 5) for i in range(1, 31)]
    assert polled(answered).silent_s < 0.1
    ignored = [reading(10 * i, 0.2 * i, frames=5 * i, reports=2) for i in range(1, 61)]
    made = polled(ignored)
    assert made.silent_s > 6 and made.heard_at == pytest.approx(0.2, abs=0.05)
    unsent = [reading(10 * i, 0.2 * i, frames=5, reports=2) for i in range(1, 61)]
    assert polled(unsent).silent_s < 0.1


def test_positions_are_known_between_the_notes_and_forgotten_when_wound_back() -> None:
    heard = PlayoutHistory()
    assert heard.at(5.0) == 0
    for now, position in ((1.0, 0), (1.2, 9_600), (1.4, 19_200), (1.6, 19_200)):
        heard.note(now, position)
    assert [heard.at(t) for t in (0.5, 1.1, 1.2, 1.35, 1.5, 9.0)] == [0, 4_800, 9_600, 16_800, 19_200, 19_200]
    heard.note(1.8, 12_000)
    assert [heard.at(t) for t in (1.2, 1.5, 1.8, 2.0)] == [9_600, 10_800, 12_000, 12_000]
    for index in range(1_000):
        heard.note(2.0 + index, 12_000 + index)
    assert heard.at(0.0) > 12_000


@pytest.mark.parametrize(
    ("width", "height", "scale", "size"), [(512, 512, 0.75, (384, 384)), (256, 144, 0.5, (128, 72))]
)
def test_smaller_pictures_show_the_same(width: int, height: int, scale: float, size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[0:height, 0:width]
    luma = (16 + 200 * columns / width).astype(np.uint8)
    u = np.full(width * height // 4, 90, np.uint8)
    v = np.linspace(60, 200, width * height // 4).astype(np.uint8)
    made = smaller(VideoFrame(np.concatenate([luma.ravel(), u, v]), width, height, 7, spoken=True), scale)
    assert (made.width, made.height, made.idle_index, made.spoken) == (*size, 7, True)
    assert made.i420.dtype == np.uint8 and made.i420.shape == (size[0] * size[1] * 3 // 2,)
    small = made.i420[: size[0] * size[1]].reshape(size[1], size[0])
    expected = 16 + 200 * (np.arange(size[0]) + 0.5) / size[0]
    assert np.abs(small - expected).max() < 2 and rows.shape == (height, width)
    chroma = made.i420[size[0] * size[1] :].reshape(2, -1)
    assert set(chroma[0]) == {90} and abs(int(chroma[1][0]) - 60) < 4 and abs(int(chroma[1][-1]) - 200) < 4
