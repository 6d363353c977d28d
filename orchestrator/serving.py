"""Runs the app with uvicorn: its options, and a graceful shutdown on signals."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from musetalk_agent.protocol.http_server import TimedHttp
from orchestrator.settings import Settings

SHUTDOWN_S = 5
KEEP_ALIVE_S = 75
"""How long an idle connection is kept: longer than clients and proxies do (httpx 5 s, aiohttp 15 s, nginx 60 s). The server must
not close first, or a request that is on its way fails. uvicorn's 5 s are httpx's, too."""
_WS_MESSAGE_FACTOR = 4
"""The WebSocket library cuts the connection at this multiple of our limit; below it the sender gets an error with a code."""
_log = logging.getLogger(__name__)


def server_config(app: FastAPI, settings: Settings, *, host: str, port: int) -> uvicorn.Config:
    """uvicorn's configuration: no access log (addresses carry tokens), our own logging, no compression of PCM.

    Pings keep proxies from closing a quiet connection. An unanswered one closes nothing: a sender that only sends, and whose
    library stops reading (and so answering) once its queue of messages is full, is alive as long as its PCM comes.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=TimedHttp,
        access_log=False,
        log_config=None,
        ws="websockets-sansio",
        ws_max_size=settings.audio_message_bytes * _WS_MESSAGE_FACTOR,
        ws_ping_interval=10.0,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
    )


class OrchestratorServer(uvicorn.Server):
    """Serves until a signal, then drains before it ends; a second signal ends it at once.

    uvicorn itself stops listening at the first signal and closes every WebSocket with 1012.

    Args:
        config: uvicorn's.
        drain: returns when nothing stands in the way of the end any more. It must be bounded.
        listens: is called with the port once the server listens.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Callable[[], Awaitable[None]],
        listens: Callable[[int], object] = lambda port: None,
    ) -> None:
        super().__init__(config)
        self._drain, self._listens = drain, listens
        self._signal: int | None = None
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. May interrupt anything, so it only takes a note."""
        if self._signal is None:
            self._signal = sig
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        for server in self.servers:
            self._listens(int(server.sockets[0].getsockname()[1]))

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends the server."""
        if self._signal is not None and self._draining is None:
            self._draining = asyncio.create_task(self._drained(self._signal), name="drain")
        return await super().on_tick(counter)

    async def _drained(self, sig: int) -> None:
        try:
            await self._drain()
        except Exception:  # noqa: BLE001 - task boundary: whatever broke, the process must end
            _log.exception("draining failed")
        if not self.should_exit:
            super().handle_exit(sig, None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes what is left."""
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)
        await super().shutdown(sockets)
