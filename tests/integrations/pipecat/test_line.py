"""`AudioLink` against a server that refuses, falls silent or is away: what is tried again, and what is over."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import ModuleType
from typing import Any

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from musetalk_agent.protocol.retries import Schedule
from tests.integrations.pipecat.conftest import PACKAGE
from tests.waiting import NEVER_S, until

QUICK = Schedule(first_s=0.01, factor=2.0, longest_s=0.05, total_s=20.0)
SILENCE_S = 0.3


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`musetalk_pipecat.audio_link` without its package, which needs Pipecat."""
    package = ModuleType("musetalk_pipecat")
    package.__path__ = [str(PACKAGE / "musetalk_pipecat")]
    monkeypatch.setitem(sys.modules, "musetalk_pipecat", package)
    yield importlib.import_module("musetalk_pipecat.audio_link")
    for name in [name for name in sys.modules if name.startswith("musetalk_pipecat.")]:
        del sys.modules[name]


class Server:
    """A session's `/audio`. `refusals` are answers to handshakes, in order: status, problem's code, headers."""

    def __init__(self) -> None:
        self.refusals: list[tuple[int, str, dict[str, str]]] = []
        self.handshakes = 0
        self.greeted = asyncio.Event()
        self.handler: Callable[[ServerConnection], Any] = self.talk

    def process(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        if not self.refusals:
            return None
        status, code, headers = self.refusals.pop(0)
        answer = connection.respond(HTTPStatus(status), json.dumps({"code": code, "detail": "No."}))
        for name, value in headers.items():
            answer.headers[name] = value
        return answer

    async def talk(self, socket: ServerConnection) -> None:
        await socket.send(json.dumps({"type": "hello", "received_samples": 0}))
        self.greeted.set()
        await socket.wait_closed()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with serve(lambda socket: self.handler(socket), "127.0.0.1", 0, process_request=self.process) as server:
            yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/audio?x=1"


async def hear(message: Mapping[str, Any]) -> None:
    pass


@asynccontextmanager
async def running(line: ModuleType, url: str, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    made = line.AudioLink(url, 16_000, hear, **{"schedule": QUICK, "silence_s": SILENCE_S, **options})
    task = asyncio.create_task(made.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def over(task: asyncio.Task[None]) -> str:
    """The code with which the line ended."""
    async with asyncio.timeout(NEVER_S):
        await asyncio.wait([task])
    error = task.exception()
    assert error is not None
    return str(error.code)  # type: ignore[attr-defined]  # a line ends with an error that has one


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (409, "session_conflict"),
        (421, "session_elsewhere"),
        (429, "rate_limited"),
        (503, "draining"),
        (500, "internal_error"),
        (409, ""),
    ],
)
async def test_a_refusal_that_passes_is_tried_again(line: ModuleType, status: int, code: str) -> None:
    server = Server()
    server.refusals = [(status, code, {})] * 4
    async with server.serving() as url, running(line, url):
        async with asyncio.timeout(NEVER_S):
            await server.greeted.wait()
    assert server.handshakes == 5


async def test_retry_after_is_waited(line: ModuleType) -> None:
    server, loop = Server(), asyncio.get_running_loop()
    server.refusals = [(409, "session_conflict", {"Retry-After": "1"})]
    began = loop.time()
    async with server.serving() as url, running(line, url):
        async with asyncio.timeout(NEVER_S):
            await server.greeted.wait()
    assert loop.time() - began >= 1.0  # a slow machine only waits longer; the schedule alone would have waited 10 ms


@pytest.mark.parametrize(
    ("status", "code", "reported"),
    [
        (404, "session_not_found", "session_ended"),
        (409, "session_ended", "session_ended"),
        (409, "speech_elsewhere", "speech_elsewhere"),
        (401, "unauthorized", "unauthorized"),
        (403, "forbidden", "forbidden"),
        (422, "sample_rate_changed", "sample_rate_changed"),
    ],
)
async def test_a_refusal_that_stays_is_the_end_with_its_code(
    line: ModuleType, status: int, code: str, reported: str
) -> None:
    server = Server()
    server.refusals = [(status, code, {})]
    async with server.serving() as url, running(line, url) as task:
        assert await over(task) == reported
    assert server.handshakes == 1


async def test_one_that_stays_away_is_given_up_after_the_schedule(line: ModuleType) -> None:
    schedule = Schedule(first_s=0.01, factor=1.0, longest_s=0.01, total_s=0.1)
    async with running(line, "ws://127.0.0.1:9/audio?x=1", schedule=schedule) as task:
        assert await over(task) == "network"


async def test_a_server_that_never_answers_the_handshake_is_left(line: ModuleType) -> None:
    """Half-open: TCP is there, and nothing ever comes."""
    accepted = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with listener, running(line, f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/audio?x=1"):
        await until(lambda: accepted >= 3)


async def test_a_server_that_never_greets_is_left(line: ModuleType) -> None:
    server = Server()

    async def mute(socket: ServerConnection) -> None:
        if server.handshakes >= 3:
            await server.talk(socket)
        else:
            await socket.wait_closed()

    server.handler = mute
    async with server.serving() as url, running(line, url):
        async with asyncio.timeout(NEVER_S):
            await server.greeted.wait()


async def test_a_line_that_went_dead_is_noticed_by_its_missing_pongs(line: ModuleType) -> None:
    server, again, noticed = Server(), asyncio.Event(), asyncio.Event()

    async def freezes(socket: ServerConnection) -> None:
        if server.handshakes > 1:
            again.set()
        await socket.send(json.dumps({"type": "hello", "received_samples": 0}))
        socket.transport.pause_reading()  # what comes is not read, pings included, and nothing is closed
        await noticed.wait()

    server.handler = freezes
    async with server.serving() as url:
        async with running(line, url), asyncio.timeout(NEVER_S):
            await again.wait()
        noticed.set()


async def test_an_idle_timeout_is_no_end(line: ModuleType) -> None:
    server = Server()

    async def idles(socket: ServerConnection) -> None:
        if server.handshakes >= 2:
            return await server.talk(socket)
        await socket.send(json.dumps({"type": "hello", "received_samples": 0}))
        await socket.send(json.dumps({"type": "error", "code": "idle_timeout", "message": "Nothing came."}))
        return await socket.close(1008)

    server.handler = idles
    async with server.serving() as url, running(line, url):
        async with asyncio.timeout(NEVER_S):
            await server.greeted.wait()


async def test_events_that_come_again_are_heard_once_and_the_last_one_is_named(line: ModuleType) -> None:
    server, heard, paths = Server(), asyncio.Queue[Mapping[str, Any]](), list[str]()

    async def talk(socket: ServerConnection) -> None:
        assert socket.request is not None
        paths.append(socket.request.path)
        await socket.send(json.dumps({"type": "hello", "received_samples": 0}))
        for number in range(1, len(paths) + 2):  # the half-open connection had lost the last one
            await socket.send(json.dumps({"type": "playback.finished", "id": 1000 + number, "segment": number}))
        if len(paths) == 1:
            await socket.close(1012)
        await socket.wait_closed()

    server.handler = talk
    async with server.serving() as url:
        made = line.AudioLink(url, 16_000, heard.put, schedule=QUICK, silence_s=SILENCE_S)
        task = asyncio.create_task(made.run())
        try:
            async with asyncio.timeout(NEVER_S):
                segments = [(await heard.get())["segment"] for _ in range(3)]
        finally:
            task.cancel()
            await asyncio.wait([task])
    assert segments == [1, 2, 3] and heard.empty()
    assert [path.partition("&last_event_id=")[2] for path in paths] == ["", "1002"]
