"""An engine of real frames that fails where a test says, and the sessions on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from musetalk_agent import engine_pool, factory
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import MonotonicClock
from musetalk_agent.engines import batcher
from musetalk_agent.engines.interface import InFlightBatch, PatchRequest
from musetalk_agent.engines.pattern import PatternEngine, PatternFeatures, PatternSession, PatternStream
from musetalk_agent.errors import EngineFailed
from musetalk_agent.factory import Factory
from musetalk_agent.media_types import Feature, Patch, Pcm, VideoFrame
from musetalk_agent.protocol.avatar_settings import DEFAULTS, AvatarSettings
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource
from musetalk_agent.publishers.base import Lost, NullPublisher
from musetalk_agent.service.live_sessions import LiveSessions
from musetalk_agent.session import session
from tests.musetalk_agent.stand import tone
from tests.waiting import NEVER_S, until

DEADLINE_S = NEVER_S
"""Only catches what never happens."""


class Plan:
    """Which call fails, and how: `raise` an error of its own, `device` for `EngineFailed`, `hang` until `release`.

    Counts what was opened and closed.
    """

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.hit = threading.Event()
        self._gate = threading.Event()
        self.opened = self.closed = self.engines_closed = 0

    def arm(self, call: str, kind: str) -> None:
        """The next call fails; each one, for `raise`."""
        self.faults[call] = kind

    def pass_through(self, call: str) -> None:
        """Called where `call` may fail."""
        kind = self.faults.get(call)
        if kind is None:
            return
        if kind != "raise":
            del self.faults[call]
        self.hit.set()
        if kind == "hang":
            assert self._gate.wait(DEADLINE_S)
        elif kind == "device":
            raise EngineFailed(f"the device failed in {call}")
        else:
            raise RuntimeError(f"{call} broke")

    def release(self) -> None:
        """Lets what hangs go on."""
        self._gate.set()


class FaultyActor(PatternSession):
    """Fails as planned when it is closed."""

    def __init__(self, plan: Plan, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._plan, self._closed = plan, False
        plan.opened += 1

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._plan.closed += 1
            self._plan.pass_through("release")


@dataclass
class FaultyFlight:
    """Fails as planned when it is collected."""

    plan: Plan
    made: list[Patch | None]

    def wait(self) -> None:
        self.plan.pass_through("wait")

    def patches(self) -> list[Patch | None]:
        self.plan.pass_through("patches")
        return self.made


class FaultyStream(PatternStream):
    """Fails as planned when it is given PCM."""

    plan: Plan

    def push(self, samples: Pcm) -> list[Feature]:
        self.plan.pass_through("features")
        return super().push(samples)


class FaultyFeatures(PatternFeatures):
    """Makes `FaultyStream`s."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def stream(self, fps: int) -> PatternStream:
        stream = FaultyStream(fps)
        stream.plan = self._plan
        return stream


class FaultyEngine(PatternEngine):
    """Fails as planned everywhere else."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        plan.pass_through("make")
        self.features = FaultyFeatures(plan)

    def open(self, bundle: Bundle, settings: AvatarSettings = DEFAULTS) -> PatternSession:
        self._plan.pass_through("open")
        return FaultyActor(self._plan, bundle)

    def warmup(self) -> None:
        self._plan.pass_through("warmup")

    def launch(self, batch: Sequence[PatchRequest]) -> InFlightBatch:  # type: ignore[override]
        self._plan.pass_through("launch")
        return FaultyFlight(self._plan, self.infer(batch))

    def close(self) -> None:
        self._plan.engines_closed += 1
        self._plan.pass_through("close")


class GatedPublisher(NullPublisher):
    """Joins when the test lets it, and leaves as the test says."""

    def __init__(self) -> None:
        super().__init__(MonotonicClock())
        self.opening, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.left = 0
        self.leave: Callable[[], None] = lambda: None
        self.leave_gate = asyncio.Event()
        self.leave_gate.set()

    async def open(self, first: VideoFrame, lost: Lost) -> None:
        self.opening.set()
        await self.gate.wait()
        await super().open(first, lost)

    async def aclose(self) -> None:
        self.left += 1
        await super().aclose()
        self.leave()
        await self.leave_gate.wait()


@dataclass
class World:
    """An agent without its HTTP side."""

    plan: Plan
    factory: Factory
    sessions: LiveSessions
    publishers: dict[str, GatedPublisher] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """Ids of sessions that do not come past their publisher's `open`."""

    @staticmethod
    def request(session_id: str) -> AgentStartRequest:
        return AgentStartRequest(
            session_id=session_id,
            room="r",
            livekit_url="ws://x",
            livekit_token="t",
            avatar=AvatarSource(),
            engine="pattern",
        )

    async def start(self, session_id: str) -> session.Session:
        return await self.sessions.start(self.request(session_id))

    def speak(self, session_id: str, seconds: float = 0.4) -> None:
        """A whole segment."""
        found = self.sessions.get(session_id)
        number = found.receiver.segments + 1
        found.receiver.take(f'{{"type":"segment.start","segment":{number},"sample_rate":16000}}')
        found.receiver.take(tone(seconds).tobytes())
        found.receiver.take('{"type":"segment.end"' + f',"segment":{number}}}')

    def events(self, session_id: str) -> list[str]:
        return [e.event.type for e in self.sessions._sessions[session_id].events.after(0)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Returns when `condition` holds."""
        await until(condition)


@asynccontextmanager
async def world(tmp_path: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Deadlines are short here, so that what hangs is found out quickly; an engine that fails is made again at once."""
    plan = Plan()
    patch.setattr(engine_pool, "PatternEngine", lambda: FaultyEngine(plan))
    patch.setattr(engine_pool, "make_warp", PatternEngine)
    patch.setattr(engine_pool, "RESTART_AFTER_S", (0.01, 0.01, 0.01))
    patch.setattr(batcher.Batcher.__init__, "__defaults__", (None, 0.5, 0.5))
    for module, name in ((batcher, "_JOIN_S"), (batcher, "_CLOSE_S"), (session, "RELEASE_S"), (session, "LEAVE_S")):
        patch.setattr(module, name, 0.2)
    patch.setattr(factory, "RELEASE_S", 0.2)
    patch.setattr(factory, "LEAVE_S", 0.2)

    def publisher(request: AgentStartRequest, fps: int) -> GatedPublisher:
        made.publishers[request.session_id] = gated = GatedPublisher()
        if request.session_id in made.held:
            gated.gate.clear()
        return gated

    settings = AgentSettings.model_validate({"agent_api_key": "k", "engine": "pattern", "cache_dir": tmp_path})
    shop = Factory(settings, publisher=publisher)
    made = World(plan, shop, LiveSessions(shop))
    await shop.start()
    try:
        yield made
    finally:
        plan.release()
        for gated in made.publishers.values():
            gated.leave_gate.set()
        await made.sessions.aclose()
        await shop.aclose()
