"""A session and a publisher that changes its transport: what is reported, and what is played again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from livekit import rtc
from pydantic import SecretStr

from musetalk_agent import engine_pool
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.clock import Clock, MonotonicClock, VirtualClock
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.pattern import PatternEngine
from musetalk_agent.factory import Factory
from musetalk_agent.media.scheduler import Outcome
from musetalk_agent.media_types import Patch, Pcm, VideoFrame
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource, PublisherMode, Transport
from musetalk_agent.protocol.messages import PublisherChanged
from musetalk_agent.publishers.base import Lost, MovingPublisher, NullPublisher
from tests.musetalk_agent.stand import tone
from tests.waiting import until


class Moving(NullPublisher):
    """Plays into nothing, and moves when it is asked to."""

    def __init__(self, clock: Clock) -> None:
        self.heard: list[Pcm] = []
        super().__init__(clock, listen=lambda _, block: self.heard.append(block))
        self.transport = Transport(rung="livekit")

    async def open(  # type: ignore[override]  # a publisher that moves takes three callbacks more
        self,
        first: VideoFrame,
        lost: Lost,
        rewind: Callable[[int], None] | None = None,
        changed: Callable[[PublisherChanged], None] | None = None,
        joined: Callable[[rtc.Room], None] | None = None,
    ) -> None:
        assert rewind is not None and changed is not None
        self._rewind, self._changed = rewind, changed
        await super().open(first, lost)

    def set_mode(self, mode: PublisherMode) -> None:
        """It moves when the test says so."""

    def move(self) -> None:
        """Nothing was heard but the first quarter of a second."""
        self.name = "rtmp"
        self.transport = Transport(mode=PublisherMode.AUTO, rung="rtmp", reason="the room was lost", changes=1)
        self.heard = [np.concatenate(self.heard)[:12_000]]
        self._rewind(12_000)
        self._changed(PublisherChanged(publisher="rtmp", reason="the room was lost"))


async def test_a_change_of_the_way_out_is_reported_and_loses_no_speech(tmp_path: Path) -> None:
    made: list[Moving] = []

    def make(_: AgentStartRequest, __: int) -> Moving:
        made.append(Moving(MonotonicClock()))
        return made[0]

    settings = AgentSettings(agent_api_key=SecretStr("k"), engine="pattern", cache_dir=tmp_path)
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
        session.receiver.take('{"type":"segment.start","segment":1,"sample_rate":16000}')
        session.receiver.take(tone(1).tobytes())
        session.receiver.take('{"type":"segment.end","segment":1}')
        await until(lambda: sum(len(b) for b in made[0].heard) >= 24_000)
        made[0].move()
        status = session.status()
        assert (status.publisher, status.transport.rung, status.transport.changes) == ("rtmp", "rtmp", 1)
        assert status.diagnosis.code == "rtmp_fallback_active"
        await until(lambda: any(e.event.type == "playback.finished" for e in session.events.after(0)))
        await session.stop()
    finally:
        await factory.aclose()
    assert 48_000 <= sum(len(b) for b in made[0].heard) < 49_920  # filled up to a whole picture
    events = [e.event for e in session.events.after(0)]
    assert [e.type for e in events if e.type != "cleared"] == [
        "playback.started",
        "publisher.changed",
        "playback.finished",
    ]


class Telling(NullPublisher):
    """Writes down what the room learns of the avatar."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.clock = clock
        self.states: list[tuple[float, str]] = []
        self.refuse = False

    async def set_state(self, state: str) -> None:
        """Raises when the test says so, as an SDK does."""
        if self.refuse:
            self.refuse = False
            raise RuntimeError("no signal connection")
        self.states.append((self.clock.now(), state))


class Failing(PatternEngine):
    """Makes no frame while it is broken."""

    broken = False

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        if Failing.broken:
            raise RuntimeError("lips on fire")
        return super().infer(batch)


async def test_the_room_hears_of_degraded_lips_in_time_and_of_their_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock()
    publisher = Telling(clock)
    publisher.refuse = True
    monkeypatch.setattr(engine_pool, "PatternEngine", Failing)
    monkeypatch.setattr(engine_pool, "make_warp", PatternEngine)
    settings = AgentSettings.model_validate({"agent_api_key": "k", "engine": "pattern", "cache_dir": tmp_path})
    factory = Factory(settings, clock, publisher=lambda request, fps: publisher)
    await factory.start()
    try:
        request = AgentStartRequest(
            session_id="s", room="r", livekit_url="ws://x", livekit_token="t", avatar=AvatarSource(), engine="pattern"
        )
        session = await factory.session(request)
        await session.start()
        await clock.run(1)
        assert [state for _, state in publisher.states] == ["idle"], "said again after the SDK refused it"
        session.receiver.take('{"type":"segment.start","segment":1,"sample_rate":16000}')
        session.receiver.take(tone(20).tobytes())
        await clock.run(8)
        monkeypatch.setattr(Failing, "broken", True)
        await clock.run(12)
        session.receiver.take('{"type":"clear"}')
        monkeypatch.setattr(Failing, "broken", False)
        await clock.run(20)
        reported = publisher.states[1:]
        assert [state for _, state in reported] == ["speaking", "degraded", "idle"]
        assert 8 < reported[1][0] < 10, "soon after it began, though seven good seconds went before"
        assert 12 < reported[2][0] < 18, "over by itself, with nothing said any more"
        assert session.diagnose().code == "engine_failing", "until a frame succeeds"
        session.receiver.take('{"type":"segment.start","segment":2,"sample_rate":16000}')
        session.receiver.take(tone(1).tobytes())
        await clock.run(21)
        assert session.diagnose().code == "track_not_subscribed" and publisher.states[-1][1] == "speaking"
        await clock.run(30)
        for _ in range(20):
            session.pipeline.player.recent.note(clock.now(), Outcome.LATE)
        found = session.diagnose()
        assert found.code == "engine_slow" and found.message.startswith("100% of the last pictures were late")
        await session.stop()
    finally:
        await factory.aclose()
