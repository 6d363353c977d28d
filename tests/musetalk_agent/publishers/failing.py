"""A session that can fall back to a real RTMP server, its viewer in the room, and the faults of the SFU."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from livekit import api

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource, PublisherMode
from musetalk_agent.protocol.messages import Event, PublisherChanged
from musetalk_agent.publishers.failover.publisher import FailoverPublisher
from musetalk_agent.publishers.failover.transports import TransportOptions
from musetalk_agent.publishers.livekit.publisher import LiveKitOptions
from musetalk_agent.publishers.rtmp.address import check_rtmp
from musetalk_agent.session.session import Session
from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, find
from tests.viewer import RATE, join_token
from tests.waiting import until

ROOM = "studio"
START = '{"type":"segment.start","segment":%d,"sample_rate":16000}'
END = '{"type":"segment.end","segment":%d}'


class Sfu:
    """A livekit-server that can hang, crash and come back."""

    def __init__(self) -> None:
        program = find()
        assert program is not None, "livekit-server is missing: run `tools/setup livekit`"
        self.server = LiveKitServer(program, log_level="error")

    @property
    def access(self) -> LiveKitAccess:
        return self.server.access

    def signal(self, number: int) -> None:
        """SIGSTOP: no packet and no answer, until SIGCONT."""
        process = self.server.child._process
        assert process is not None
        os.kill(process.pid, number)

    async def crash(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        assert self.server.child._process is not None
        await self.server.child._process.wait()


@asynccontextmanager
async def sfu() -> AsyncIterator[Sfu]:
    made = Sfu()
    try:
        await made.server.start()
        yield made
    finally:
        if made.server.child._process is not None and made.server.child._process.returncode is None:
            await made.crash()  # a server that is asked to end waits for its participants
        await made.server.stop()


@dataclass
class Failing:
    """A session, and when it took which way."""

    session: Session
    publisher: FailoverPublisher
    changes: list[tuple[float, PublisherChanged]]

    def ways(self) -> list[str]:
        return [change.publisher for _, change in self.changes]

    def when(self, way: str) -> float:
        """When that way was taken last."""
        return next(at for at, change in reversed(self.changes) if change.publisher == way)

    def kinds(self) -> list[str]:
        """Types of the session's events, in order."""
        return [numbered.event.type for numbered in self.session.events.after(0)]

    async def until(self, way: str) -> None:
        """Returns when that way is in use."""
        await until(lambda: self.publisher.name == way)

    def say(self, pcm: Pcm, number: int = 1) -> None:
        """Sends a segment at once."""
        self.session.receiver.take(START % number)
        self.session.receiver.take(pcm.tobytes())
        self.session.receiver.take(END % number)

    async def speak(self, pcm: Pcm, number: int = 1, *, begins: bool = True, ends: bool = True) -> None:
        """Sends a segment, or a part of one that neither `begins` nor `ends` it, at the pace of its sound."""
        begun = time.monotonic()
        if begins:
            self.session.receiver.take(START % number)
        step = RATE // 10
        for at in range(0, len(pcm), step):
            await asyncio.sleep(max(0.0, begun + (at + step) / RATE - time.monotonic()))
            self.session.receiver.take(pcm[at : at + step].tobytes())
        if ends:
            self.session.receiver.take(END % number)


def probe_token(access: LiveKitAccess) -> str:
    grants = api.VideoGrants(room_join=True, room=ROOM, can_publish=False, can_subscribe=False, hidden=True)
    made = api.AccessToken(access.api_key, access.api_secret).with_identity("probe-s1").with_grants(grants)
    return made.to_jwt()


@asynccontextmanager
async def failing(
    access: LiveKitAccess,
    executor: ThreadPoolExecutor,
    rtmp_url: str | None = None,
    *,
    mode: PublisherMode = PublisherMode.AUTO,
    beside: bool = False,
    ingress: bool = False,
    token: str = "",
    url: str = "",
) -> AsyncIterator[Failing]:
    """A session with the pattern engine, built but not started; stopped at the end."""
    batcher = Batcher(PatternEngine())
    await batcher.start()
    bundle, clock = pattern_bundle(256, 256, 25), MonotonicClock()
    token = token or join_token(access, ROOM, "avatar", "agent", publish=True)
    address = await check_rtmp(rtmp_url, True) if rtmp_url else None
    room = LiveKitOptions(url or access.url, token, ROOM, 25)
    options = TransportOptions(room, address=address, beside=beside, ingress=ingress, probe_token=probe_token(access))
    publisher = FailoverPublisher(options, mode, clock)
    request = AgentStartRequest(
        session_id="s1", room=ROOM, livekit_url=access.url, livekit_token=token, avatar=AvatarSource()
    )
    actor = batcher.engine.open(bundle)
    session = Session(
        request,
        bundle,
        "pattern",
        publisher,
        lambda outputs: Pipeline(publisher, batcher, actor, bundle, clock, executor, outputs),
        actor.close,
    )
    changes: list[tuple[float, PublisherChanged]] = []
    add = session.events.add

    def note(event: Event) -> None:
        if isinstance(event, PublisherChanged):
            changes.append((time.monotonic(), event))
        add(event)

    session.events.add = note  # type: ignore[method-assign]  # what the session tells is written down too
    try:
        yield Failing(session, publisher, changes)
    finally:
        await session.stop()
        await batcher.aclose()


def coarse(wave: np.ndarray) -> np.ndarray:
    """48 kHz at 16 kHz."""
    return wave[: len(wave) // 3 * 3].reshape(-1, 3).mean(1)
