"""Serves an ASGI app on a free loopback port for as long as a test needs it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

BRIEF = httpx.Limits(keepalive_expiry=1.0)
"""For clients of our servers: a connection is not used again when the server may just be closing it, after five seconds."""


@asynccontextmanager
async def serving(config: uvicorn.Config) -> AsyncIterator[str]:
    """Runs the server and yields its address; everything of it has ended afterwards.

    A server without a lifespan is a fake: its connections are cut instead of being waited for.
    """
    # The protocol is named, for asyncio turns Nagle's algorithm off only where it is (40 ms an answer otherwise).
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup([listener])
        assert server.started, "the app did not start"
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            if config.lifespan == "off":
                await _cut(server)
            else:
                await server.shutdown([listener])


async def _cut(server: uvicorn.Server) -> None:
    for each in server.servers:
        each.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()  # type: ignore[union-attr]
    for task in list(server.server_state.tasks):
        task.cancel()
    await asyncio.gather(*server.server_state.tasks, return_exceptions=True)


def plain_config(app: Any) -> uvicorn.Config:
    """A configuration for the fakes."""
    return uvicorn.Config(
        app, access_log=False, log_config=None, ws="websockets-sansio", ws_per_message_deflate=False, lifespan="off"
    )
