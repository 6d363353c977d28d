"""Deadlines of a connection, on time that the test winds on: a head that does not come, a client that does not read, a crowd."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from musetalk_agent.protocol import http_server
from musetalk_agent.protocol.http_server import HEAD_S, WRITE_S, TimedHttp, most_connections
from tests.waiting import turns

ASK = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Timer:
    """What `call_later` gives."""

    at: float
    call: Callable[..., object]
    over: bool = False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.over = True


@dataclass
class Loop:
    """Timers of the test's own; tasks are the real loop's."""

    now: float = 100.0
    timers: list[Timer] = field(default_factory=list)

    def call_later(self, seconds: float, call: Callable[..., object], *_: object) -> Timer:
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def create_task(self, work: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work, **options)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for timer in sorted(self.timers, key=lambda one: one.at):
            if not timer.over and timer.at <= self.now:
                timer.over = True
                timer.call()


class Transport(asyncio.Transport):
    """Takes what is written; `gone` once it was aborted or closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = self.closed = False

    @property
    def gone(self) -> bool:
        return self.aborted or self.closed

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.gone

    def pause_reading(self) -> None:
        """Nothing more is sent here."""

    def resume_reading(self) -> None:
        """As above."""


class Door:
    """Connections to one server, whose answers wait for `answer`."""

    def __init__(self) -> None:
        self.loop, self.state = Loop(), ServerState()
        self.answer = asyncio.Event()
        self.answer.set()
        self.config = Config(self.app, log_config=None, ws="none", interface="asgi3")

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def connect(self) -> tuple[TimedHttp, Transport]:
        made = TimedHttp(self.config, self.state, {}, _loop=cast(asyncio.AbstractEventLoop, self.loop))
        transport = Transport()
        made.connection_made(transport)
        return made, transport


@pytest.fixture
async def door() -> Door:
    return Door()


@pytest.mark.parametrize("sent", [b"", b"G", ASK[:-2]])
async def test_a_head_that_is_not_finished_in_time_ends_the_connection(door: Door, sent: bytes) -> None:
    made, transport = door.connect()
    if sent:
        made.data_received(sent)
    assert made.waits_until == 100 + HEAD_S
    door.loop.pass_time(HEAD_S - 0.1)
    assert not transport.gone
    door.loop.pass_time(0.2)
    assert transport.aborted and made.waits_until is None


async def test_trickling_does_not_move_the_deadline(door: Door) -> None:
    made, transport = door.connect()
    for byte in ASK[: int(HEAD_S)]:
        door.loop.pass_time(0.9)
        made.data_received(bytes([byte]))
    assert made.waits_until == 100 + HEAD_S and not transport.gone
    door.loop.pass_time(HEAD_S * 0.1 + 0.1)
    assert transport.aborted


async def test_a_request_has_as_long_for_its_answer_as_that_takes_and_the_next_head_a_deadline_of_its_own(
    door: Door,
) -> None:
    door.answer.clear()
    made, transport = door.connect()
    made.data_received(ASK)
    assert made.waits_until is None
    await turns()
    door.loop.pass_time(100 * HEAD_S)
    assert not transport.gone, "the answer is being made"
    door.answer.set()
    await turns()
    assert transport.sent.startswith(b"HTTP/1.1 200") and transport.sent.endswith(b"ok")
    made.data_received(ASK[:5])
    assert made.waits_until == door.loop.now + HEAD_S
    made.data_received(ASK[5:])
    assert made.waits_until is None
    await turns()
    assert transport.sent.count(b"HTTP/1.1 200") == 2 and not transport.aborted


async def test_a_client_that_reads_nothing_is_cut_off_and_one_that_reads_now_and_then_is_not(door: Door) -> None:
    made, transport = door.connect()
    made.data_received(ASK)
    for _ in range(5):
        made.pause_writing()
        made.pause_writing()  # a second call moves nothing
        door.loop.pass_time(WRITE_S - 1)
        made.resume_writing()
        made.resume_writing()
    await turns()
    assert not transport.aborted
    made.pause_writing()
    door.loop.pass_time(WRITE_S)
    assert transport.aborted


async def test_what_is_gone_or_is_another_protocol_now_has_no_deadline(door: Door) -> None:
    made, transport = door.connect()
    made.pause_writing()
    made.connection_lost(None)
    assert made.waits_until is None and all(timer.over for timer in door.loop.timers)
    door.loop.pass_time(WRITE_S + HEAD_S)
    assert not transport.aborted


async def test_of_too_many_connections_the_one_that_waits_longest_for_a_head_is_closed(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS", 3)
    door.answer.clear()
    busy, busy_transport = door.connect()
    busy.data_received(ASK)
    waiting = []
    for _ in range(2):
        door.loop.pass_time(1)
        waiting.append(door.connect()[1])
    assert not any(transport.gone for transport in (busy_transport, *waiting))
    door.loop.pass_time(1)
    _, newest = door.connect()
    assert [transport.aborted for transport in (busy_transport, *waiting, newest)] == [False, True, False, False]
    door.answer.set()
    await turns()
    assert busy_transport.sent.endswith(b"ok"), "who is being answered is not disturbed"


async def test_where_all_others_are_being_answered_the_new_one_is_closed(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS", 2)
    door.answer.clear()
    held = [door.connect() for _ in range(2)]
    for made, _ in held:
        made.data_received(ASK)
    _, newest = door.connect()
    assert newest.aborted and not any(transport.gone for _, transport in held)
    door.answer.set()
    await turns()


@pytest.mark.parametrize(
    ("files", "most"),
    [(resource.RLIM_INFINITY, 4096), (1_048_576, 4096), (8192, 4096), (1024, 512), (256, 128), (100, 64), (0, 64)],
)
def test_half_of_the_file_descriptors_are_for_connections_and_never_more_than_4096(
    monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, resource.RLIM_INFINITY))
    assert most_connections() == most
