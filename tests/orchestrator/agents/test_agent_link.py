"""The link over real sockets: cut, resumed, refused, given up."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace

import pytest
from websockets.asyncio.server import ServerConnection, serve

from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource
from musetalk_agent.protocol.messages import Event, LinkClear, LinkHello, PlaybackStarted, SegmentEnd, SegmentStart
from orchestrator.agents.agent_client import AgentLease
from orchestrator.agents.agent_link import WINDOW_S, AgentLink, LinkLost, LinkOver, LinkPeer
from orchestrator.audio.outgoing_segment import LinkMessage
from orchestrator.metrics import Metrics
from tests.fakes.agent_server import AGENT_KEY, FakeAgent
from tests.fakes.agent_session import FakeSession
from tests.fakes.relay import Relay, relay
from tests.fakes.serving import plain_config, serving
from tests.waiting import NEVER_S, until

HEADERS = {"Authorization": f"Bearer {AGENT_KEY}"}
REQUEST = AgentStartRequest(session_id="s", room="r", livekit_url="ws://none", livekit_token="t", avatar=AvatarSource())


class Source:
    """Items that wait, events that came."""

    def __init__(self) -> None:
        self.items: deque[LinkMessage] = deque()
        self.events: list[Event] = []

    def peer(self) -> LinkPeer:
        return LinkPeer(self.pull, self.events.append)

    def pull(self, now: float, outstanding_s: float, control_only: bool) -> LinkMessage | None:
        return self.items.popleft() if self.items and not control_only else None


@asynccontextmanager
async def agent_behind_relay() -> AsyncIterator[tuple[FakeAgent, FakeSession, Relay]]:
    agent = FakeAgent()
    session = agent.sessions["s"] = FakeSession(REQUEST)
    async with serving(plain_config(agent.app)) as url, relay(url) as between:
        yield agent, session, between


@contextmanager
def running(link: AgentLink) -> Iterator[asyncio.Task[None]]:
    task = asyncio.create_task(link.run())
    try:
        yield task
    finally:
        task.cancel()


async def test_twenty_cuts_lose_nothing_and_double_nothing() -> None:
    source = Source()
    async with agent_behind_relay() as (_, session, between):
        link = AgentLink(AgentLease(between.url, HEADERS), "s", source.peer(), Metrics())
        with running(link) as task:
            blocks = [bytes([n % 256, n // 256]) * 320 for n in range(420)]
            source.items.append(LinkMessage(SegmentStart(segment=1, sample_rate=16000).model_dump_json()))
            cuts = 0
            for index, block in enumerate(blocks):
                source.items.append(LinkMessage(block, 0.02))
                link.wake()
                if index % 20 == 10:
                    cuts += 1
                    await until(lambda: link.connected and link.drops == cuts - 1)  # noqa: B023
                    for _ in range(7 * (index % 3)):
                        await asyncio.sleep(0)  # another moment of the connection's life each time
                    between.cut()
            source.items.append(LinkMessage(SegmentEnd(segment=1).model_dump_json()))
            link.wake()
            await until(lambda: len(source.events) == 2)
        with suppress(asyncio.CancelledError):
            await task
        assert session.pcm == b"".join(blocks)
        assert session.items == len(blocks) + 2
        assert [event.type for event in source.events] == ["playback.started", "playback.finished"]
        assert link.drops >= 20
        assert session.connections >= 21


async def test_a_link_whose_agent_takes_one_item_a_connection_still_delivers() -> None:
    source = Source()
    async with agent_behind_relay() as (agent, session, between):
        agent.drop_link_after = 2
        link = AgentLink(AgentLease(between.url, HEADERS), "s", source.peer(), Metrics())
        source.items.append(LinkMessage(SegmentStart(segment=1, sample_rate=16000).model_dump_json()))
        source.items.extend(LinkMessage(bytes([n, 0]), 0.0) for n in range(8))
        with running(link):
            await until(lambda: len(session.pcm) == 16)
        assert session.pcm == b"".join(bytes([n, 0]) for n in range(8))


async def test_a_clear_overtakes_pcm_that_an_agent_does_not_acknowledge() -> None:
    source, clear = Source(), LinkMessage(LinkClear().model_dump_json())
    async with agent_behind_relay() as (agent, session, between):
        agent.acknowledges = False
        pending: deque[LinkMessage] = deque()

        def pull(now: float, outstanding_s: float, control_only: bool) -> LinkMessage | None:
            return pending.popleft() if pending else source.pull(now, outstanding_s, control_only)

        peer = replace(source.peer(), pull=pull)
        link = AgentLink(AgentLease(between.url, HEADERS), "s", peer, Metrics())
        source.items.append(LinkMessage(SegmentStart(segment=1, sample_rate=16000).model_dump_json()))
        source.items.extend(LinkMessage(bytes(32000), 1.0) for _ in range(60))
        with running(link):
            await until(lambda: len(session.pcm) == 32000 * WINDOW_S)  # the window is full
            pending.append(clear)
            link.wake()
            await until(lambda: session.texts[-1] == {"type": "clear"})
        assert len(session.pcm) == 32000 * WINDOW_S and len(source.items) == 60 - WINDOW_S


async def test_an_agent_that_stays_away_is_given_up() -> None:
    async with agent_behind_relay() as (_, _, between):
        between.refuse = True
        link = AgentLink(AgentLease(between.url, HEADERS), "s", Source().peer(), Metrics(), open_s=0.3)
        with pytest.raises(LinkLost, match=r"for 0\.3 s"):
            await asyncio.wait_for(link.run(), NEVER_S)


async def test_an_agent_that_was_there_is_given_up_sooner_and_at_once_when_its_port_is_closed() -> None:
    for refuses, why in ((True, r"for 0\.5 s"), (False, "process is gone")):
        async with AsyncExitStack() as stack:
            agent = FakeAgent()
            agent.sessions["s"] = FakeSession(REQUEST)
            url = await stack.enter_async_context(serving(plain_config(agent.app)))
            network = AsyncExitStack()
            stack.push_async_callback(network.aclose)
            between = await network.enter_async_context(relay(url))
            link = AgentLink(AgentLease(between.url, HEADERS), "s", Source().peer(), Metrics(), give_up_s=0.5)
            with running(link) as task:
                await link.up.wait()
                if refuses:
                    between.refuse = True
                    between.cut()
                else:
                    await network.aclose()
                with pytest.raises(LinkLost, match=why):
                    await asyncio.wait_for(task, NEVER_S)


async def test_a_session_that_another_orchestrator_began_goes_on_from_what_the_agent_has() -> None:
    source = Source()
    async with agent_behind_relay() as (_, session, between):
        session.items = 7
        for number in (1, 2, 3):
            session.emit(PlaybackStarted(segment=number))
        link = AgentLink(AgentLease(between.url, HEADERS), "s", source.peer(), Metrics(), adopt_after=2)
        with running(link):
            await until(lambda: len(source.events) == 1)
            source.items.append(LinkMessage(SegmentStart(segment=4, sample_rate=16000).model_dump_json()))
            link.wake()
            await until(lambda: session.items == 8 and not link.unacked)
        assert link.events_seen == 3


async def test_a_session_the_agent_does_not_know_is_over() -> None:
    async with agent_behind_relay() as (_, _, between):
        link = AgentLink(AgentLease(between.url, HEADERS), "unknown", Source().peer(), Metrics())
        with pytest.raises(LinkOver):
            await asyncio.wait_for(link.run(), NEVER_S)


async def test_a_wrong_key_is_not_tried_again() -> None:
    async with agent_behind_relay() as (_, _, between):
        lease = AgentLease(between.url, {"Authorization": "Bearer wrong"})
        with pytest.raises(LinkLost, match="refuses our key"):
            await asyncio.wait_for(AgentLink(lease, "s", Source().peer(), Metrics()).run(), NEVER_S)
        assert between.accepted == 1


async def test_going_away_is_the_end_of_the_session() -> None:
    async with agent_behind_relay() as (_, session, between):
        link = AgentLink(AgentLease(between.url, HEADERS), "s", Source().peer(), Metrics())
        with running(link) as task:
            await link.up.wait()
            await session.sockets[0].close(1001)
            with pytest.raises(LinkOver):
                await asyncio.wait_for(task, NEVER_S)


async def test_an_agent_that_forgot_what_it_took_is_noticed() -> None:
    source = Source()
    async with agent_behind_relay() as (_, session, between):
        link = AgentLink(AgentLease(between.url, HEADERS), "s", source.peer(), Metrics())
        with running(link) as task:
            source.items.append(LinkMessage(SegmentStart(segment=1, sample_rate=16000).model_dump_json()))
            link.wake()
            await until(lambda: session.items == 1 and not link.unacked)
            session.items = 0
            between.cut()
            with pytest.raises(LinkLost, match="items"):
                await asyncio.wait_for(task, NEVER_S)


async def test_what_is_sent_is_the_protocols_json() -> None:
    source = Source()
    async with agent_behind_relay() as (_, session, between):
        link = AgentLink(AgentLease(between.url, HEADERS), "s", source.peer(), Metrics())
        source.items.append(LinkMessage(SegmentStart(segment=1, sample_rate=16000, received=0).model_dump_json()))
        with running(link):
            await until(lambda: session.texts)
        expected = '{"type":"segment.start","segment":1,"sample_rate":16000,"heard_s":0.0,"received":0,"in_s":0.0'
        assert session.texts == [json.loads(expected + ',"traceparent":null}')]


async def test_a_cancel_at_any_moment_of_a_drop_ends_the_link() -> None:
    """However many iterations of the loop lie between the drop and the cancel: none of them swallows it."""
    drop = asyncio.Event()

    async def agent(socket: ServerConnection) -> None:
        await socket.send(LinkHello(items=0).model_dump_json())
        await drop.wait()
        await socket.close(1012)

    async with serve(agent, "127.0.0.1", 0) as server:
        (listener,) = server.sockets
        lease = AgentLease(f"http://127.0.0.1:{listener.getsockname()[1]}")
        for iterations in range(40):
            link = AgentLink(lease, "s", Source().peer(), Metrics())
            task = asyncio.create_task(link.run())
            await link.up.wait()
            drop.set()
            for _ in range(iterations):
                await asyncio.sleep(0)
            drop.clear()
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=NEVER_S)
            assert done, f"a cancel {iterations} iterations after the drop was swallowed"
            assert task.cancelled()
