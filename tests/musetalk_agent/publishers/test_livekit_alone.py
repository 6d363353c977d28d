"""The LiveKit publisher where no room answers: before it joins, while a join is under way, after it left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.media.segment import Caption
from musetalk_agent.publishers.livekit import publisher as livekit_publisher
from musetalk_agent.publishers.livekit.publisher import LiveKitOptions, LiveKitPublisher
from tests.waiting import until


def publisher(**more: object) -> LiveKitPublisher:
    options = LiveKitOptions("ws://127.0.0.1:1", "token", "studio", 25)
    return LiveKitPublisher(options, MonotonicClock(), **more)  # type: ignore[arg-type]  # as the test gives them


class Captions:
    """Takes captions, and its end."""

    def __init__(self) -> None:
        self.taken: list[Caption] = []
        self.ends = 0

    def push(self, caption: Caption) -> None:
        self.taken.append(caption)

    async def aclose(self) -> None:
        self.ends += 1


async def test_before_it_joins_and_after_it_left_nothing_is_shown_and_nothing_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, captions = publisher(), Captions()
    monkeypatch.setattr(made, "_captions", captions)
    caption = object()
    for connected in (False, True):
        made.state.connected = connected
        made.push_caption(caption)  # type: ignore[arg-type]  # only passed on
    assert captions.taken == [caption]
    made.state.connected = False
    made.set_quality(scale=0.5, fps_divisor=2)
    await made.set_state("speaking")
    assert made.clear_audio() == 0 and made.state.published_frames == 0
    await made.aclose()
    made.state.connected = True
    made.push_caption(caption)  # type: ignore[arg-type]  # the same
    await made.set_state("idle")
    await made.aclose()
    assert captions.taken == [caption] and captions.ends == 1


async def test_quality_goes_to_the_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    made = publisher()
    camera = SimpleNamespace(scale=1.0, fps_divisor=1)
    monkeypatch.setattr(made, "_camera", camera)
    made.set_quality(scale=0.5, fps_divisor=2)
    assert (camera.scale, camera.fps_divisor) == (0.5, 2)


@pytest.mark.parametrize("late", [False, True], ids=["in time", "too late"])
async def test_a_join_under_way_is_waited_for_and_only_a_late_one_is_abandoned(
    monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    made = publisher()
    reached = asyncio.Event()

    async def connect() -> None:
        await reached.wait()

    abandoned: list[object] = []
    monkeypatch.setattr(livekit_publisher, "abandon", lambda room, connecting: abandoned.append(connecting))
    monkeypatch.setattr(livekit_publisher, "_JOIN_GRACE_S", 0.01 if late else 60.0)
    made._connecting = joining = asyncio.create_task(connect())
    closing = asyncio.create_task(made.aclose())
    await until(lambda: made._closing)
    if not late:
        reached.set()
    await closing
    assert abandoned == ([joining] if late else []) and not joining.cancelled()
    reached.set()
    await joining


async def test_statistics_that_do_not_come_leave_the_last_reading_and_are_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[float] = []
    made = publisher(on_reading=lambda: looks.append(made.liveness.silent_s))
    before = made.reading

    async def broken() -> None:
        raise Exception("no statistics while it reconnects")

    monkeypatch.setattr(livekit_publisher, "_STATS_PERIOD_S", 0)
    monkeypatch.setattr(made, "_room", SimpleNamespace(get_rtc_stats=broken))
    task = asyncio.create_task(made._poll_stats())
    try:
        await until(lambda: len(looks) >= 3)
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert made.reading is before and made.state.acknowledged_frames == 0
    assert looks == sorted(looks) and looks[-1] > 0, "the silence grows"
