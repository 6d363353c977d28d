"""The load generator's `/audio` against a server that drops it, refuses it, or is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from musetalk_tools.loadtest import load_session as sender_module
from musetalk_tools.loadtest.load_session import Sender, SenderLost
from tests.waiting import NEVER_S, until


@dataclass
class Session:
    """As the orchestrator does: what was taken is taken, whatever becomes of the connection."""

    drop_after: int = 1 << 30
    error: str | None = None
    taken: bytearray = field(default_factory=bytearray)
    said: list[str] = field(default_factory=list)
    connections: int = 0

    async def handle(self, socket: ServerConnection) -> None:
        self.connections += 1
        hello = {"type": "hello", "received_samples": len(self.taken) // 2}
        await socket.send(json.dumps(hello))
        try:
            async for message in socket:
                if isinstance(message, str):
                    self.said.append(json.loads(message)["type"])
                    continue
                self.taken += message
                if self.error:
                    await socket.send(json.dumps({"type": "error", "code": self.error, "message": ""}))
                    return await socket.close(1008)
                if len(self.taken) >= self.drop_after:
                    self.drop_after = 1 << 30
                    return await socket.close(1012)
        except ConnectionClosed:
            return None


@asynccontextmanager
async def sender(session: Session, on_message: Callable[[dict[str, Any]], None] = print) -> AsyncIterator[Sender]:
    async with serve(session.handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        made = Sender(f"ws://127.0.0.1:{port}/audio", on_message)
        try:
            await made.open()
            yield made
        finally:
            await made.aclose()


async def test_a_dropped_connection_loses_and_repeats_nothing() -> None:
    pcm = np.random.default_rng(3).integers(-20_000, 20_000, 16_000).astype(np.int16)
    session, blocks = Session(drop_after=9_000), []
    async with sender(session) as link:
        await link.say("audio.start")
        await link.send(pcm[:8_000], on_block=lambda end, at: blocks.append(end))
        await link.send(pcm[8_000:], paced=False)
        await link.say("audio.end")
        await until(lambda: session.said[-1] == "audio.end")
        assert bytes(session.taken) == pcm.astype("<i2").tobytes()
        assert (link.reconnects, session.connections) == (1, 2)
        assert session.said == ["audio.start", "audio.end"] and blocks[-1] == 8_000


async def test_an_error_of_the_service_is_the_code() -> None:
    heard: list[dict[str, Any]] = []
    session = Session(error="backlog_exceeded")
    async with sender(session, heard.append) as link:
        with pytest.raises(SenderLost, match="backlog_exceeded"):
            await link.send(np.zeros(160_000, np.int16))
        assert heard[-1]["code"] == "backlog_exceeded" and session.connections == 1


def refusing(*answers: tuple[int, str]) -> tuple[Callable[[ServerConnection, Any], Any], list[int]]:
    """A handshake's answers, one each, before it succeeds; and how many came."""
    left, came = list(answers), []

    def process(connection: ServerConnection, request: Any) -> Any:
        came.append(1)
        if not left:
            return None
        status, code = left.pop(0)
        return connection.respond(HTTPStatus(status), json.dumps({"code": code}))

    return process, came


@pytest.mark.parametrize(("status", "code"), [(409, "session_ended"), (404, "session_not_found"), (403, "forbidden")])
async def test_a_session_that_is_over_is_not_opened_again(status: int, code: str) -> None:
    process, came = refusing((status, code), (status, code))
    async with serve(Session().handle, "127.0.0.1", 0, process_request=process) as server:
        link = Sender(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/audio", print)
        with pytest.raises(SenderLost, match=f"refused_{status}"):
            await link.open()
        await link.aclose()
    assert len(came) == 1


async def test_a_session_between_two_owners_is_opened_again() -> None:
    process, came = refusing((409, "session_conflict"), (421, "session_elsewhere"), (503, "draining"), (429, ""))
    async with serve(Session().handle, "127.0.0.1", 0, process_request=process) as server:
        link = Sender(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/audio", print)
        await link.open()
        await link.aclose()
    assert len(came) == 5


async def test_a_server_that_never_greets_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "SILENCE_S", 0.2)
    session = Session()

    async def mute_at_first(socket: ServerConnection) -> None:
        if session.connections:
            return await session.handle(socket)
        session.connections += 1
        await socket.wait_closed()

    async with serve(mute_at_first, "127.0.0.1", 0) as server:
        link = Sender(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/audio", print)
        async with asyncio.timeout(NEVER_S):
            await link.open()
        await link.aclose()
    assert session.connections == 2


async def test_a_new_connection_names_the_last_event_that_came() -> None:
    paths = list[str]()

    async def telling(socket: ServerConnection) -> None:
        assert socket.request is not None
        paths.append(socket.request.path)
        await socket.send('{"type": "hello", "received_samples": 0}')
        await socket.send('{"type": "playback.started", "id": 1007, "segment": 1}')
        if len(paths) == 1:
            await socket.recv()
            await socket.close(1012)
        await socket.wait_closed()

    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with serve(telling, "127.0.0.1", 0) as server:
        link = Sender(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/audio?x=1", heard.put_nowait)
        async with asyncio.timeout(NEVER_S):
            await link.open()
            await heard.get()
            while len(paths) < 2:
                await link.send(np.zeros(320, np.int16))
        await link.aclose()
    assert paths == ["/audio?x=1", "/audio?x=1&last_event_id=1007"]
