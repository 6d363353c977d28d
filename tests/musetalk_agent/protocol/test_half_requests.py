"""Heads and handshakes that are never finished, at both services: each connection ends by its deadline, and others are served."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from musetalk_agent.protocol import http_server
from tests.fakes.stage import stage
from tests.musetalk_agent.service.served import agent
from tests.waiting import NEVER_S

HALF = {
    "nothing": b"",
    "half a head": b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: ",
    "half a handshake": b"GET /audio HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n",
    "half a head after an answer": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHo",
    "a body that was not waited for": b"POST /session/start HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{",
}


@pytest.fixture(params=["orchestrator", "agent"])
async def port(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[int]:
    if request.param == "agent":
        async with agent(tmp_path) as made:
            yield made.port
    else:
        async with stage() as running:
            yield int(running.url.rpartition(":")[2])


@pytest.mark.parametrize("sent", HALF.values(), ids=HALF.keys())
async def test_what_is_never_finished_is_closed(port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it trickles on."""
    monkeypatch.setattr(http_server, "HEAD_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def trickle() -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.02)

    writer.write(sent)
    trickling = asyncio.create_task(trickle()) if sent else None
    try:
        async with asyncio.timeout(NEVER_S):
            with suppress(ConnectionError):
                while await reader.read(4096):
                    pass
    finally:
        if trickling is not None:
            trickling.cancel()
            await asyncio.gather(trickling, return_exceptions=True)
        writer.close()


async def test_a_crowd_that_says_nothing_keeps_nobody_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS", 8)
    crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
    try:
        async with asyncio.timeout(NEVER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            with suppress(ConnectionError):
                assert await crowd[0][0].read() == b"", "the one that has waited longest is closed"
    finally:
        for _, each in crowd:
            each.close()


async def test_who_reads_nothing_of_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "WRITE_S", 0.3)
    ask = b"GET /vendor/livekit-client.esm.js HTTP/1.1\r\nHost: x\r\n\r\n"
    async with stage() as running, asyncio.timeout(NEVER_S):
        with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as idler:
            idler.setblocking(False)
            with suppress(BlockingIOError):
                idler.send(ask * 100)  # more than fits into the sockets' buffers
            with pytest.raises(ConnectionError):
                while True:
                    await asyncio.sleep(0.05)  # it sends now and then until it is cut off
                    with suppress(BlockingIOError):
                        idler.send(b"G")
        assert (await running.http.get("/health")).status_code == 200
