"""Sessions with all that they are made of on virtual time: real lifecycle, pool, clients, links and ledger; agents, rooms and store
that are fakes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import pytest
from pydantic import BaseModel

from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.pool import StaticAgentPool
from orchestrator.audio.ingest import AudioFormat, PcmDecoder
from orchestrator.events import EventBus, SessionEvent
from orchestrator.livekit_rooms import LiveKitKeys, Rooms, TokenMinter
from orchestrator.metrics import Metrics
from orchestrator.public_tokens import PublicTokens
from orchestrator.session.deps import SessionDeps
from orchestrator.session.journal import SessionJournal
from orchestrator.session.manager import SessionManager
from orchestrator.session.model import ManagedSession, SessionOptions, SessionRequest
from orchestrator.session.standby_voice import StandbyVoices, VoiceStandby
from orchestrator.voice.voice_worker import VoiceLine, VoiceWorker
from orchestrator.voice.worker_messages import LineReport
from tests.fakes.agent_server import AGENT_KEY, FakeAgent
from tests.fakes.memory_store import MemoryStore
from tests.fakes.wire import Network

RATE = 16_000
ORDER = SessionRequest(room="r", avatar=AvatarSource(), picture=Picture(), engine="pattern")


class FakeRooms:
    """Rooms that were asked for, and who was removed. `broken`: LiveKit does not answer."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.removed: list[tuple[str, str]] = []
        self.muted: list[str] = []
        self.deleted: list[str] = []
        self.broken = False

    async def ensure(self, room: str) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise ProblemError(ErrorCode.LIVEKIT_UNAVAILABLE, "LiveKit did not make the room.")
        self.made.append(room)

    async def remove(self, room: str, identity: str) -> None:
        self.removed.append((room, identity))

    async def delete(self, room: str) -> None:
        self.deleted.append(room)

    async def mute(self, room: str, identity: str, track: str) -> None:
        self.muted.append(track)


class FakeVoices:
    """A `VoiceWorker` whose process takes every order down and reports nothing by itself."""

    def __init__(self) -> None:
        self.lines: list[VoiceLine] = []
        self.orders: list[BaseModel] = []
        self.opened = False

    def open(self) -> None:
        self.opened = True

    async def aclose(self) -> None: ...

    def line(self, url: str, token: Callable[[], str], on_report: Callable[[LineReport], None]) -> VoiceLine:
        made = VoiceLine(f"line-{len(self.lines) + 1}", url, token, self._send, on_report, self.lines.remove)
        self.lines.append(made)
        return made

    def _send(self, message: BaseModel, payload: bytes = b"") -> bool:
        self.orders.append(message)
        return True


class World:
    """An orchestrator's sessions and their agents."""

    def __init__(
        self,
        agents: int = 2,
        *,
        store: MemoryStore | None = None,
        options: SessionOptions | None = None,
        standby: VoiceStandby = VoiceStandby.OFF,
    ) -> None:
        self.agents = {f"http://agent{n}": FakeAgent() for n in range(agents)}
        for agent in self.agents.values():
            agent.pace = 1.0
        self.network = Network(self.agents)
        self.metrics = Metrics()
        self.rooms = FakeRooms()
        self.store = store or MemoryStore()
        self.journal = SessionJournal(self.store, "secret", None, self.metrics)
        self.bus = EventBus(self.metrics)
        self.reported: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        self.bus.listen(self._keep)
        self.client = self.network.client()
        self.pool = StaticAgentPool(list(self.agents), AGENT_KEY, self.client)
        keys = LiveKitKeys("ws://livekit", "ws://livekit", "devkey", "secretsecretsecretsecretsecret00")
        minter = TokenMinter(keys)
        rooms = cast(Rooms, self.rooms)
        self.tokens = PublicTokens(self.store, "secret", time.time)
        self.voices = FakeVoices()
        self.services = SessionDeps(
            pool=self.pool,
            agents=self.client,
            rooms=rooms,
            minter=minter,
            metrics=self.metrics,
            events=self.bus,
            journal=self.journal,
            public_tokens=self.tokens,
            voices=StandbyVoices(cast(VoiceWorker, self.voices), minter, rooms, self.metrics, standby),
        )
        self.sessions = SessionManager(self.services, options or SessionOptions())
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await self.journal.open(self.sessions.hand_over)
        self._tasks = [
            asyncio.create_task(self.journal.keep_leases(), name="leases"),
            asyncio.create_task(self.journal.write_behind(), name="records"),
        ]

    async def aclose(self) -> None:
        await self.sessions.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.journal.flush()
        await self.client.aclose()

    def _keep(self, event: SessionEvent) -> None:
        self.reported[event.session_id].append((event.type, json.loads(event.text)["data"]))

    def states(self, session: ManagedSession) -> list[str]:
        """Every state that was reported, in order."""
        return [data["state"] for kind, data in self.reported[session.session_id] if kind == "session.state"]

    def events(self, session: ManagedSession, kind: str) -> list[dict[str, Any]]:
        return [data for each, data in self.reported[session.session_id] if each == kind]

    def agent_of(self, session: ManagedSession) -> FakeAgent:
        assert session.lease is not None
        return self.agents[session.lease.base_url]

    async def start(self, **fields: Any) -> ManagedSession:
        order = SessionRequest(**{**vars(ORDER), **fields})
        return await self.sessions.start(order)

    def restart(self, url: str) -> FakeAgent:
        """A new process at the address of one that was killed."""
        agent = self.agents[url]
        agent.sessions.clear()
        agent.hung = agent.draining = False
        self.network.dead.discard(url)
        return agent


@asynccontextmanager
async def world(
    agents: int = 2,
    *,
    store: MemoryStore | None = None,
    standby: VoiceStandby = VoiceStandby.OFF,
    **options: Any,
) -> AsyncIterator[World]:
    """Opens it, and closes it with all that runs."""
    with pytest.MonkeyPatch.context() as patch:
        made = World(agents, store=store, options=SessionOptions(**options), standby=standby)
        patch.setattr("orchestrator.agents.agent_link.connect", made.network.connect)
        await made.open()
        try:
            yield made
        finally:
            await made.aclose()


def speech(seconds: float, value: int = 1) -> bytes:
    """PCM of one value, 16 kHz."""
    return np.full(round(seconds * RATE), value, "<i2").tobytes()


def say(session: ManagedSession, pcm: bytes, decoder: PcmDecoder | None = None) -> None:
    """Sends PCM as a sender of `/audio` does, in messages of ten seconds."""
    decoder = decoder or PcmDecoder(AudioFormat.S16LE)
    for at in range(0, len(pcm), 20 * RATE):
        session.running().ingest.push(pcm[at : at + 20 * RATE], decoder, RATE)
