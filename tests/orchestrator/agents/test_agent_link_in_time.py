"""When a link is made again, and when it is given up: to the second, on virtual time, with the real link and the fake agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource, Picture
from musetalk_agent.protocol.messages import TAKEN_OVER
from orchestrator.agents.agent_client import AgentLease
from orchestrator.agents.agent_link import AgentLink, LinkDesync, LinkLost, LinkOver, LinkPeer, LinkTaken
from orchestrator.audio.outgoing_segment import LinkMessage
from orchestrator.metrics import Metrics
from tests.fakes.agent_server import AGENT_KEY, FakeAgent
from tests.fakes.agent_session import FakeSession
from tests.fakes.wire import Network
from tests.virtual_loop import virtually

URL = "http://agent"
REQUEST = AgentStartRequest(
    session_id="ses_1",
    room="r",
    livekit_url="ws://x",
    livekit_token="t",
    avatar=AvatarSource(),
    picture=Picture(),
    max_duration_s=60,
    backlog_s=60,
)


class Here:
    """A link to a fake agent; `connects` are the moments at which it tried, from its beginning."""

    def __init__(self, patch: pytest.MonkeyPatch, **link: Any) -> None:
        self.agent = FakeAgent()
        self.agent.sessions["ses_1"] = FakeSession(REQUEST)
        self.network = Network({URL: self.agent})
        self.begun = time.monotonic()
        self.connects: list[float] = []
        self.items: list[LinkMessage] = []
        self.events: list[str] = []

        def connect(url: str, **options: Any) -> Any:
            self.connects.append(round(time.monotonic() - self.begun, 6))
            return self.network.connect(url, **options)

        patch.setattr("orchestrator.agents.agent_link.connect", connect)
        peer = LinkPeer(
            lambda now, outstanding_s, control_only: self.items.pop(0) if self.items and not control_only else None,
            lambda event: self.events.append(event.type),
        )
        lease = AgentLease(URL, {"Authorization": f"Bearer {AGENT_KEY}"})
        self.link = AgentLink(lease, "ses_1", peer, Metrics(), **link)
        self.task = asyncio.create_task(self.link.run())

    async def lost(self) -> tuple[Exception, float]:
        """What ended it, and when."""
        await asyncio.wait({self.task})
        error = self.task.exception()
        assert isinstance(error, LinkLost | LinkOver), error
        return error, round(time.monotonic() - self.begun, 3)


@asynccontextmanager
async def linked(**link: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        here = Here(patch, **link)
        try:
            yield here
        finally:
            here.task.cancel()
            await asyncio.gather(here.task, return_exceptions=True)


@virtually
async def test_an_agent_that_is_not_there_yet_is_tried_with_growing_pauses_for_five_seconds() -> None:
    async with linked() as here:
        here.network.dead.add(URL)
        error, at = await here.lost()
        assert here.connects == [0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 5.1] and at == 5.1
        assert str(error) == "no connection to the agent for 5 s (ConnectionRefusedError)"


@virtually
async def test_one_that_was_there_and_refuses_twice_is_gone() -> None:
    async with linked() as here:
        await here.link.up.wait()
        await asyncio.sleep(10.0)
        here.network.kill(URL)
        error, at = await here.lost()
        assert here.connects == [0.0, 10.0, 10.1] and at == 10.1
        assert "its process is gone" in str(error) and here.link.lost_at == here.begun + 10.0


@virtually
async def test_one_that_was_there_and_is_not_reached_has_one_and_a_half_seconds() -> None:
    async with linked() as here:
        await here.link.up.wait()
        await asyncio.sleep(10.0)
        here.agent.refuse_link = True
        here.network.cut(URL)
        error, at = await here.lost()
        assert here.connects == [0.0, 10.0, 10.1, 10.3, 10.7, 11.5, 13.1][: len(here.connects)]
        assert 11.5 < at < 13.2 and "for 1.5 s (HTTP 503)" in str(error)


@pytest.mark.parametrize(("held_s", "pause_s"), [(0.5, 0.1), (1.0, 0.1), (1.1, 0.0), (60.0, 0.0)])
def test_a_connection_that_held_for_a_second_is_made_again_at_once(held_s: float, pause_s: float) -> None:
    @virtually
    async def played() -> None:
        async with linked() as here:
            await here.link.up.wait()
            await asyncio.sleep(held_s)
            here.network.cut(URL)
            await asyncio.sleep(0.5)
            assert here.connects == [0.0, pytest.approx(held_s + pause_s)]
            assert here.link.connected and here.link.drops == 1 and here.agent.only.connections == 2

    played()


@virtually
async def test_a_link_that_drops_again_and_again_is_no_storm() -> None:
    async with linked() as here:
        await here.link.up.wait()
        for _ in range(20):
            here.network.cut(URL)
            await asyncio.sleep(0.5)
        assert len(here.connects) <= 21 and here.link.connected
        pauses = [later - earlier for earlier, later in pairwise(here.connects)]
        assert min(pauses) >= 0.1


@pytest.mark.parametrize(
    ("ends", "kind", "why"),
    [
        (lambda agent: agent.sessions.clear(), LinkOver, "no such session any more"),
        (lambda agent: setattr(agent.only, "items", 99), LinkDesync, "has taken 99 items, 0 to 0 were expected"),
    ],
)
def test_what_another_connection_would_not_change_ends_it_at_the_next_one(
    ends: Callable[[FakeAgent], object], kind: type[Exception], why: str
) -> None:
    @virtually
    async def played() -> None:
        async with linked() as here:
            await here.link.up.wait()
            await asyncio.sleep(5.0)
            ends(here.agent)
            here.network.cut(URL)
            error, at = await here.lost()
            assert type(error) is kind and why in str(error) and at == 5.0

    played()


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [(1001, "", LinkOver), (1008, TAKEN_OVER, LinkTaken), (1008, "nonsense", LinkLost)],
)
def test_what_an_agents_close_says(code: int, reason: str, kind: type[Exception]) -> None:
    @virtually
    async def played() -> None:
        async with linked() as here:
            await here.link.up.wait()
            (socket,) = here.agent.only.sockets
            await socket.close(code, reason)
            error, _ = await here.lost()
            assert type(error) is kind

    played()


@virtually
async def test_items_that_were_under_way_when_it_broke_arrive_once() -> None:
    async with linked() as here:
        await here.link.up.wait()
        here.agent.drop_link_after = 3
        here.items += [
            LinkMessage('{"type":"segment.start","segment":1,"sample_rate":16000}'),
            *(LinkMessage(bytes([n, 0]) * 160, 0.01) for n in range(10)),
            LinkMessage('{"type":"segment.end","segment":1}'),
        ]
        here.link.wake()
        await asyncio.sleep(3.0)
        assert here.agent.only.pcm == b"".join(bytes([n, 0]) * 160 for n in range(10))
        assert here.events == ["playback.started", "playback.finished"] and here.link.drops >= 3
