"""The client of LiveKit's server API and connections that break: a call is sent again only where that is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from livekit import api

from orchestrator.livekit_rooms import LiveKitClient, LiveKitFailed
from tests.waiting import NEVER_S

_EMPTY = b"HTTP/1.1 200 OK\r\nContent-Type: application/protobuf\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def server(breaks_at: set[int]) -> AsyncIterator[tuple[LiveKitClient, list[bytes]]]:
    """Answers every request but those of these numbers (from 0), at which it closes the connection. Gives the requests it read."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                requests.append(head.split(b" ")[1])
                if len(requests) - 1 in breaks_at:
                    return
                writer.write(_EMPTY)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = LiveKitClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", "key", "secret" * 8)
    await client.open()
    try:
        yield client, requests
    finally:
        await client.aclose()
        listener.close()
        await listener.wait_closed()


async def list_rooms(client: LiveKitClient, *, idempotent: bool = True) -> None:
    request = api.ListRoomsRequest()
    await client.call(lambda livekit: livekit.room.list_rooms(request), NEVER_S, idempotent=idempotent)


async def test_a_call_on_a_kept_connection_that_broke_is_sent_once_more() -> None:
    async with server({1}) as (client, requests):
        await list_rooms(client)
        await list_rooms(client)
        assert requests == [b"/twirp/livekit.RoomService/ListRooms"] * 3


async def test_a_call_that_breaks_twice_fails() -> None:
    async with server({0, 1}) as (client, requests):
        with pytest.raises(LiveKitFailed, match="ServerDisconnectedError"):
            await list_rooms(client)
        assert len(requests) == 2


async def test_a_call_that_is_not_idempotent_is_sent_once() -> None:
    async with server({0}) as (client, requests):
        with pytest.raises(LiveKitFailed, match="ServerDisconnectedError"):
            await list_rooms(client, idempotent=False)
        assert len(requests) == 1


async def test_a_server_that_refuses_connections_is_asked_once() -> None:
    async with server(set()) as (client, requests):
        pass
    client = LiveKitClient(client._url, "key", "secret" * 8)
    await client.open()
    try:
        with pytest.raises(LiveKitFailed, match="ClientConnectorError"):
            await list_rooms(client)
    finally:
        await client.aclose()
    assert requests == []
