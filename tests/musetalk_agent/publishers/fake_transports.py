"""A failover publisher on virtual time whose ways out are scripted: a room, a stream, WHIP and a probe that do what a test says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from musetalk_agent.clock import VirtualClock
from musetalk_agent.errors import PublishFailed
from musetalk_agent.media.playout import PlayoutClock
from musetalk_agent.media.segment import Caption
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import PublisherMode
from musetalk_agent.protocol.messages import PublisherChanged
from musetalk_agent.publishers.base import Lost, PublisherState
from musetalk_agent.publishers.failover import quality, transports
from musetalk_agent.publishers.failover.publisher import FailoverPublisher
from musetalk_agent.publishers.failover.transports import TransportOptions
from musetalk_agent.publishers.livekit.publisher import LiveKitOptions
from musetalk_agent.publishers.livekit.stats import Liveness, TransportStats
from musetalk_agent.publishers.rtmp.address import RtmpAddress
from musetalk_agent.publishers.stream.sink import StreamOptions, StreamState
from tests.musetalk_agent.publishers.feed import picture
from tests.waiting import turns

ADDRESS = RtmpAddress("rtmp", "stream.example", 1935, "live", "topsecret", ("127.0.0.1",))
FIRST = picture(90, 64)
BLOCK = np.ones(1920, np.int16)


class FakeRoom:
    """`LiveKitPublisher`. A join waits until the script answers; what happened is in `world.log`."""

    def __init__(
        self,
        world: World,
        options: LiveKitOptions,
        clock: VirtualClock,
        playout: PlayoutClock,
        on_reading: Callable[[], None],
        on_joined: object = None,
    ) -> None:
        self.world, self.options, self.playout, self.on_reading = world, options, playout, on_reading
        self.token = options.token
        self.state = PublisherState()
        self.liveness = Liveness(clock.now())
        self.reading = TransportStats()
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: Lost | None = None
        self.heard: list[Pcm] = []
        self.pictures: list[VideoFrame] = []
        self.captions: list[Caption] = []
        self.attribute = ""
        self.stays = False  # the goodbye is never answered
        world.rooms.append(self)

    async def open(self, first: VideoFrame, lost: Lost) -> None:
        self.world.log.append("join")
        self.lost = lost
        await asyncio.shield(self.answer)
        self.state.connected = True
        self.world.log.append("joined")

    async def capture(self, block: Pcm) -> None:
        self.heard.append(block)

    def push_video(self, frame: VideoFrame, due: float | None = None) -> None:
        self.pictures.append(frame)

    def push_caption(self, caption: Caption) -> None:
        self.captions.append(caption)

    def clear_audio(self) -> int:
        return self.playout.clear()

    def set_quality(self, *, scale: float, fps_divisor: int) -> None:
        self.world.log.append(f"quality {scale} {fps_divisor}")

    async def set_state(self, state: str) -> None:
        self.attribute = state

    async def aclose(self) -> None:
        self.state.connected = False
        if self.stays:
            await asyncio.Event().wait()
        self.world.log.append("left")


class FakeStream:
    """`RtmpSink` or `WhipSink`, whose connection the script makes and breaks."""

    def __init__(self, world: World, name: str, options: StreamOptions, changed: Callable[[], None]) -> None:
        self.world, self.name, self.options, self._changed = world, name, options, changed
        self.state = StreamState()
        self.heard: list[tuple[float, Pcm]] = []
        self.pictures: list[VideoFrame] = []
        self.started = self.closed = False
        self.pushed_until = -math.inf
        self.may_end = asyncio.Event()
        self.may_end.set()
        world.streams.append(self)

    def start(self) -> None:
        self.started = True
        self.world.log.append(f"{self.name} opens")

    def offer_audio(self, at: float, block: Pcm) -> None:
        self.heard.append((at, block))

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        self.pictures.append(frame)

    def clear_audio(self, since: float = 0.0) -> None:
        self.heard = [(at, block) for at, block in self.heard if at < since]

    def set_quality(self, *, bitrate: int, fps_divisor: int) -> None:
        self.world.log.append(f"{self.name} bitrate {bitrate}")

    async def aclose(self) -> None:
        await self.may_end.wait()
        self.closed = True
        self.world.log.append(f"{self.name} ended")

    def connects(self) -> None:
        self.state.connected, self.state.error = True, None
        self._changed()

    def breaks(self, error: str = "the server closed the connection") -> None:
        self.state.connected, self.state.error = False, error
        self._changed()


class FakeProbe:
    """`Probe`: tells when the script does."""

    def __init__(
        self, world: World, url: str, token: str | None, report: Callable[[bool], None], healthy_s: float
    ) -> None:
        self.report, self.token, self.healthy_s = report, token, healthy_s
        self.closed = False
        world.probes.append(self)

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class World:
    """The publisher, its time, and all that it made."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    rooms: list[FakeRoom] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    probes: list[FakeProbe] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    changes: list[PublisherChanged] = field(default_factory=list)
    rewinds: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    answers: bool = False
    """Whether the SFU's HTTP side says anything."""
    publisher: FailoverPublisher = field(init=False)
    opening: asyncio.Task[None] = field(init=False)

    @property
    def room(self) -> FakeRoom:
        return self.rooms[-1]

    @property
    def stream(self) -> FakeStream:
        return next(one for one in reversed(self.streams) if one.name == "rtmp")

    @property
    def whip(self) -> FakeStream:
        return next(one for one in reversed(self.streams) if one.name == "whip")

    async def begin(self, mode: PublisherMode = PublisherMode.AUTO, **ways: object) -> None:
        """Makes a publisher with these ways (see `TransportOptions`) and begins to open it."""
        room = LiveKitOptions(
            "ws://sfu.example", "token-1", "studio", 25, publishes_audio=bool(ways.pop("sound", True))
        )
        self.publisher = FailoverPublisher(TransportOptions(room, **ways), mode, self.clock)

        def rewind(position: int) -> None:
            self.rewinds.append(position)
            self.publisher.playout.rewind(position)

        opened = self.publisher.open(FIRST, self.lost.append, rewind, self.changes.append)
        self.opening = asyncio.create_task(opened)
        await turns()

    async def joined(self) -> None:
        """The room's server takes the join."""
        self.room.answer.set_result(None)
        await turns()

    async def refused(self, error: Exception) -> None:
        """The join fails."""
        self.room.answer.set_exception(error)
        await turns()

    async def passes(self, seconds: float, *, silent: bool = False) -> None:
        """Virtual time, with a tick every 0.2 s; `silent`: nothing comes back from the SFU meanwhile."""
        end = self.clock.now() + seconds
        while self.clock.now() < end - 1e-9:
            await self.clock.run(self.clock.now() + 0.2)
            for room in self.rooms:
                if silent:
                    room.liveness.silent_s = self.clock.now() - room.liveness.heard_at
                else:
                    room.liveness.heard_at, room.liveness.silent_s = self.clock.now(), 0.0
            self.publisher._tick()
            await turns(10)

    async def says(self, blocks: int = 1) -> None:
        """Hands blocks of 40 ms over, as fast as they are taken."""
        for _ in range(blocks):
            pushing = asyncio.create_task(self.publisher.push_audio(BLOCK))
            await turns(5)
            if not pushing.done() and self.publisher._flow.is_set():
                await self.clock.run(self.clock.now() + 0.04)
            await pushing

    async def ends(self) -> None:
        await self.publisher.aclose()
        await asyncio.gather(self.opening, return_exceptions=True)

    def refusal(self, status: int) -> PublishFailed:
        """What the SDK makes of an HTTP answer."""
        failed = PublishFailed("the agent could not publish", value="ws://sfu.example")
        failed.__cause__ = RuntimeError(f"engine: signal failure: http error: {status}")
        return failed


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Ways out that only the test moves."""
    made = World()

    async def answers(url: str) -> bool:
        return made.answers

    monkeypatch.setattr(transports, "LiveKitPublisher", lambda *about: FakeRoom(made, *about))
    monkeypatch.setattr(quality, "LiveKitPublisher", FakeRoom)
    monkeypatch.setattr(transports, "RtmpSink", lambda options, _, changed: FakeStream(made, "rtmp", options, changed))
    monkeypatch.setattr(transports, "WhipSink", lambda options, _, changed: FakeStream(made, "whip", options, changed))
    monkeypatch.setattr(transports, "Probe", lambda *about: FakeProbe(made, *about))
    monkeypatch.setattr(transports, "answers", answers)
    return made
