"""A session and a publisher that changes its way out: what is told, and what is played again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np

from musetalk_agent.clock import Clock, MonotonicClock
from musetalk_agent.factory import Factory
from musetalk_agent.media import Pcm
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource, PublisherMode, Transport
from musetalk_agent.protocol.messages import PublisherChanged
from musetalk_agent.publishers.base import MovingPublisher
from musetalk_agent.publishers.null import NullPublisher
from musetalk_agent.settings import AgentSettings
from tests.musetalk_agent.stand import tone


class Moving(NullPublisher):
    """Plays into nothing, and moves when it is told to."""

    def __init__(self, clock: Clock) -> None:
        self.heard: list[Pcm] = []
        super().__init__(clock, listen=lambda _, block: self.heard.append(block))
        self.transport = Transport(rung="livekit")
        self.on_rewind: Callable[[int], None] = lambda _: None
        self.on_change: Callable[[PublisherChanged], None] = lambda _: None

    def set_mode(self, mode: PublisherMode) -> None:
        """It moves when the test says so."""

    def move(self) -> None:
        """Nothing was heard but the first quarter of a second."""
        self.name = "rtmp"
        self.transport = Transport(mode=PublisherMode.AUTO, rung="rtmp", reason="the room was lost", changes=1)
        self.heard = [np.concatenate(self.heard)[:12_000]]
        self.on_rewind(12_000)
        self.on_change(PublisherChanged(publisher="rtmp", reason="the room was lost"))


async def test_a_change_of_the_way_out_is_told_and_loses_no_speech(tmp_path: Path) -> None:
    made: list[Moving] = []

    def make(_: AgentStartRequest, __: int) -> Moving:
        made.append(Moving(MonotonicClock()))
        return made[0]

    settings = AgentSettings(agent_api_key="k", engine="pattern", cache_dir=tmp_path)  # type: ignore[arg-type]
    factory = Factory(settings, publisher=make)
    await factory.start()
    try:
        request = AgentStartRequest(
            session_id="s", room="r", livekit_url="ws://x", livekit_token="t", avatar=AvatarSource(), engine="pattern"
        )
        session = await factory.session(request)
        assert isinstance(made[0], MovingPublisher)
        await session.start()
        assert session.status().transport.rung == "livekit"
        session.take('{"type":"segment.start","segment":1,"sample_rate":16000}')
        session.take(tone(1).tobytes())
        session.take('{"type":"segment.end","segment":1}')
        while sum(len(b) for b in made[0].heard) < 24_000:  # noqa: ASYNC110 - a clock of its own paces it
            await asyncio.sleep(0.01)
        made[0].move()
        status = session.status()
        assert (status.publisher, status.transport.rung, status.transport.changes) == ("rtmp", "rtmp", 1)
        assert status.diagnosis.code == "rtmp_fallback_active"
        async with asyncio.timeout(10):
            while not any(e.event.type == "playback.finished" for e in session.outbox.after(0)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await session.stop()
    finally:
        await factory.aclose()
    assert 48_000 <= sum(len(b) for b in made[0].heard) < 49_920  # filled up to a whole picture
    events = [e.event for e in session.outbox.after(0)]
    assert [e.type for e in events if e.type != "cleared"] == [
        "playback.started",
        "publisher.changed",
        "playback.finished",
    ]
