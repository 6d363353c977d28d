"""Joins that are not wanted any more, the probe of a room, and leaving: what is left behind, and what is reported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from livekit import rtc

from musetalk_agent.publishers.failover import transports
from musetalk_agent.publishers.failover.transports import Probe, answers
from musetalk_agent.publishers.livekit import detached_connect
from musetalk_agent.publishers.livekit.detached_connect import abandon, leave
from tests.fakes.stuck import stuck
from tests.waiting import NEVER_S, turns, until


class Room:
    """The SDK's room, as far as a join and a goodbye go. `joins` is answered by the test."""

    made: list[Room] = []  # noqa: RUF012 - emptied by each test

    def __init__(self) -> None:
        self.joins: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.goodbyes = 0
        self.breaks = False
        self.connection_state = rtc.ConnectionState.CONN_DISCONNECTED
        self._task: asyncio.Task[None] | None = None
        self.last_event = asyncio.Event()
        Room.made.append(self)

    async def connect(self, url: str, token: str, options: Any) -> None:
        await asyncio.shield(self.joins)
        self.connection_state = rtc.ConnectionState.CONN_CONNECTED
        self._task = asyncio.create_task(self._reads(), name="room-events")

    async def disconnect(self) -> None:
        self.goodbyes += 1
        if self.breaks:
            raise RuntimeError("the SDK is not well")
        self.connection_state = rtc.ConnectionState.CONN_DISCONNECTED

    async def _reads(self) -> None:
        await self.last_event.wait()


@pytest.fixture(autouse=True)
def no_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "made", [])


def join(room: Room) -> asyncio.Task[None]:
    return asyncio.create_task(room.connect("ws://x", "t", None))


async def test_a_room_that_is_reached_after_all_is_left() -> None:
    room = Room()
    connecting = join(room)
    leaving = abandon(room, connecting)
    await turns()
    assert not leaving.done() and room.goodbyes == 0
    room.joins.set_result(None)
    room.last_event.set()
    await leaving
    assert room.goodbyes == 1 and leaving not in detached_connect._tasks


@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_a_join_that_does_not_succeed_needs_no_goodbye(how: str) -> None:
    room = Room()
    connecting = join(room)
    leaving = abandon(room, connecting)
    await turns()
    if how == "fails":
        room.joins.set_exception(RuntimeError("no UDP"))
    else:
        connecting.cancel()
    await leaving
    assert room.goodbyes == 0 and connecting.done()
    await asyncio.gather(connecting, return_exceptions=True)


@pytest.mark.parametrize("breaks", [True, False])
async def test_a_goodbye_that_breaks_or_hangs_is_given_up_and_nothing_runs_on(
    breaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached_connect, "_LEAVE_S", 0.05)
    room = Room()
    room.breaks = breaks
    room.joins.set_result(None)
    connecting = join(room)
    await abandon(room, connecting)
    assert room.goodbyes == 1 and room._task is not None
    await asyncio.gather(room._task, return_exceptions=True)
    assert room._task.cancelled()


async def test_leaving_waits_for_the_task_that_reads_the_rooms_events() -> None:
    room = Room()
    room.joins.set_result(None)
    await join(room)
    leaving = asyncio.create_task(leave(room))
    await turns()
    assert room.goodbyes == 1 and not leaving.done()
    room.last_event.set()
    await leaving
    assert room._task is not None and room._task.done() and not room._task.cancelled()
    await leave(Room())  # type: ignore[arg-type]  # one that was never joined has no such task


@pytest.fixture
async def reported(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[bool]]:
    monkeypatch.setattr(transports.rtc, "Room", Room)
    monkeypatch.setattr(transports, "_EVERY_S", 0.0)

    async def yes(url: str) -> bool:
        return True

    monkeypatch.setattr(transports, "answers", yes)
    yield []


async def test_a_probe_says_yes_once_a_join_has_held_and_leaves_the_room(reported: list[bool]) -> None:
    made = Probe("ws://x", "token", reported.append, healthy_s=0.0)
    await until(lambda: Room.made)
    assert reported == []
    Room.made[0].joins.set_result(None)
    Room.made[0].last_event.set()
    await until(lambda: reported)
    await until(lambda: Room.made[0].goodbyes)
    assert reported[0] is True
    await made.aclose()
    await made.aclose()
    for room in Room.made:
        room.last_event.set()
        if not room.joins.done():
            room.joins.set_result(None)
    await until(lambda: not detached_connect._tasks)
    assert all(room.goodbyes == 1 for room in Room.made)


async def test_a_probe_whose_join_fails_says_no_and_tries_again(reported: list[bool]) -> None:
    made = Probe("ws://x", "token", reported.append, healthy_s=0.0)
    for count in (1, 2):
        await until(lambda count=count: len(Room.made) == count)
        Room.made[-1].joins.set_exception(RuntimeError("eyJ.secret"))
        await until(lambda count=count: len(reported) >= count)
    assert reported[:2] == [False, False]
    await made.aclose()
    for room in Room.made[2:]:
        room.joins.cancel()
    await until(lambda: not detached_connect._tasks)


async def test_closing_does_not_wait_for_a_join_under_way_and_that_room_is_left_later(reported: list[bool]) -> None:
    made = Probe("ws://x", "token", reported.append, healthy_s=0.0)
    await until(lambda: Room.made)
    async with asyncio.timeout(NEVER_S):
        await made.aclose()
    (room,) = Room.made
    assert room.goodbyes == 0 and reported == []
    room.joins.set_result(None)
    room.last_event.set()
    await until(lambda: not detached_connect._tasks)
    assert room.goodbyes == 1


async def test_without_a_token_of_its_own_a_probe_asks_twice_over_http(reported: list[bool]) -> None:
    made = Probe("ws://x", None, reported.append, healthy_s=0.0)
    await until(lambda: len(reported) >= 2)
    assert set(reported) == {True} and Room.made == []
    await made.aclose()


@pytest.mark.parametrize(
    ("says", "alive"), [(b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.0 404 x\r\n", True), (b"SSH-2.0-x\r\n", False)]
)
async def test_whatever_speaks_http_is_an_answer(says: bytes, alive: bool) -> None:
    async with stuck(says) as port:
        for scheme in ("ws", "http"):
            assert await answers(f"{scheme}://127.0.0.1:{port}") is alive


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1", "ws://127.0.0.1:99999", "ws://", "wss://127.0.0.1:1", "nonsense"])
async def test_an_address_without_a_server_is_no_answer(url: str) -> None:
    assert await answers(url) is False
