"""A room's server that says nothing to the agent's join, trickles, or upgrades and goes silent: the start ends with a code."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from musetalk_agent.publishers import abandoned, ladder_words
from tests.musetalk_agent.service.served import agent
from tests.waiting import NEVER_S

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455


async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def trickling(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Slow: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def upgraded(head: bytes, writer: asyncio.StreamWriter) -> None:
    """The WebSocket opens, and no answer to the join comes."""
    keys = [line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: ")]
    if keys:
        accept = base64.b64encode(hashlib.sha1(keys[0] + _MAGIC).digest())
        upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(upgrade + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        await writer.drain()
    await asyncio.Event().wait()


@asynccontextmanager
async def room_server(answer: object) -> AsyncIterator[str]:
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                await answer(await reader.readuntil(b"\r\n\r\n"), writer)  # type: ignore[operator]
            finally:
                writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()


@pytest.mark.parametrize("answer", [silent, trickling, upgraded])
async def test_a_start_ends_and_leaves_nothing(answer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_words, "ALONE_AT_START_S", 1.0)
    async with asyncio.timeout(NEVER_S):
        async with agent(tmp_path) as here, room_server(answer) as url:
            told = await here.start(connect_livekit=True, livekit_url=url)
            assert (told.status_code, told.json()["code"]) == (503, "livekit_unavailable")
            assert (await here.http.get("/health")).json()["capacity"]["sessions"] == 0
            assert (await here.start("s2")).status_code == 200
        # a join that is under way cannot be called off; it ends when its server does
        await asyncio.gather(*abandoned._tasks, return_exceptions=True)
