"""The sink to nowhere, which keeps the pace of its clock, and the pictures that the SDK is given."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from musetalk_agent.clock import VirtualClock
from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.publishers.base import NullPublisher
from musetalk_agent.publishers.livekit import publisher
from musetalk_agent.publishers.livekit.video_track import LiveKitVideoSource
from tests.musetalk_agent.publishers.feed import picture

BLOCK = np.ones(1920, np.int16)


async def test_the_sink_to_nowhere_takes_60_ms_ahead_and_no_more() -> None:
    clock = VirtualClock()
    heard: list[float] = []
    sink = NullPublisher(clock, listen=lambda at, block: heard.append(at))
    await sink.open(picture(90, 16), lambda reason: None)
    for number in range(10):
        pushing = asyncio.create_task(sink.push_audio(BLOCK))
        await clock.run(clock.now())
        assert pushing.done() == (number == 0)
        while not pushing.done():
            await clock.run(clock.now() + 0.005)
        assert clock.now() == pytest.approx(max(0.0, 0.04 * (number + 1) - 0.06), abs=0.0051)
        assert sink.playout.queued_s() <= 0.06 + 1e-9
    assert heard == pytest.approx([0.04 * number for number in range(10)])
    queued = round(sink.playout.queued_s() * ROOM_RATE)
    assert sink.clear_audio() == pytest.approx(queued, abs=1) and sink.playout.empty
    await sink.aclose()
    assert not sink.state.connected


async def test_every_picture_is_counted_and_seen_with_its_time() -> None:
    clock = VirtualClock(5.0)
    seen: list[tuple[float, int]] = []
    sink = NullPublisher(clock, watch=lambda at, frame: seen.append((at, int(frame.i420[0]))))
    await sink.open(picture(90, 16), lambda reason: None)
    await clock.run(5.04)
    sink.push_video(picture(91, 16))
    assert seen == [(5.0, 90), (5.04, 91)]
    assert sink.state.published_frames == sink.state.acknowledged_frames == 2


class Source:
    """`rtc.VideoSource`, which copies what it is given."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.shown: list[tuple[int, int, bytes]] = []
        self.times_us: list[int] = []
        self.closed = 0

    def capture_frame(self, frame: Any, *, timestamp_us: int) -> None:
        self.shown.append((frame.width, frame.height, bytes(frame.data)))
        self.times_us.append(timestamp_us)

    async def aclose(self) -> None:
        self.closed += 1


async def test_a_camera_shows_each_picture_or_every_nth_smaller_where_it_is_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher.rtc, "VideoSource", Source)
    made = LiveKitVideoSource(picture(10, 64))
    source: Source = made.source
    assert source.size == (64, 64) and source.shown == [(64, 64, picture(10, 64).i420.tobytes())]
    made.fps_divisor = 3
    assert [made.push(picture(20 + n, 64)) for n in range(6)] == [False, True, False, False, True, False]
    assert [data[0] for _, _, data in source.shown[1:]] == [21, 24]
    made.fps_divisor, made.scale = 1, 0.5
    assert made.push(picture(30, 64))
    width, height, data = source.shown[-1]
    assert (width, height, len(data), set(data[:1024])) == (32, 32, 1536, {30})
    assert made.push(picture(31, 64), 12.5) and source.times_us[-1] == 12_500_000, "the time at which it was due"
    assert 0 < source.times_us[0] <= source.times_us[1], "or now"
    await made.aclose()
    assert source.closed == 1


async def test_a_camera_that_is_not_watched_shows_five_pictures_a_second_and_at_once_whatever_comes_to_a_viewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher.rtc, "VideoSource", Source)
    made = LiveKitVideoSource(picture(10, 64))
    began = time.monotonic() + 60
    shown = [n for n in range(50) if made.push(picture(20, 64), began + 0.04 * n + 1e-6, watched=False)]
    assert shown == list(range(0, 50, 5))
    assert made.push(picture(30, 64), began + 1.84), "45 was the last one"


async def test_pictures_that_must_not_be_written_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher.rtc, "VideoSource", Source)
    made = LiveKitVideoSource(picture(10, 64))
    source: Source = made.source
    for luma, size in ((40, 64), (41, 64), (42, 32)):
        planes = picture(luma, size).i420
        planes.flags.writeable = False
        assert made.push(VideoFrame(planes, size, size, 0))
        assert source.shown[-1] == (size, size, planes.tobytes())
