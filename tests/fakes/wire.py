"""HTTP and WebSockets to fake agents without a socket, so that they run on virtual time: the real clients speak to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

from orchestrator.agents.agent_client import AgentClient
from tests.fakes.agent_server import FakeAgent

_OK = (1000, 1001)


class Network(httpx.AsyncBaseTransport):
    """Leads to agents by their address. One in `dead` refuses connections, as a process that has ended does."""

    def __init__(self, agents: Mapping[str, FakeAgent]) -> None:
        self.agents = dict(agents)
        self.dead: set[str] = set()
        self.wires: list[Wire] = []

    def client(self) -> AgentClient:
        """A client whose calls go through this network."""
        made = AgentClient()
        for lane in made._lanes.values():
            lane._transport = self
        return made

    def kill(self, url: str) -> None:
        """The agent's process ends: its connections break, and new ones are refused."""
        self.dead.add(url)
        self.cut(url)

    def cut(self, url: str) -> None:
        """Every WebSocket to the agent breaks."""
        for wire in self.wires:
            if wire.url == url:
                wire.cut()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = f"{request.url.scheme}://{request.url.host}"
        if url in self.dead:
            raise httpx.ConnectError("refused", request=request)
        transport = httpx.ASGITransport(self.agents[url].app)
        try:
            return await transport.handle_async_request(request)
        except ConnectionAbortedError as error:  # the fake's word for a process that dies of a request
            raise httpx.RemoteProtocolError("cut", request=request) from error

    @asynccontextmanager
    async def connect(self, url: str, *, additional_headers: Mapping[str, str], **_: Any) -> AsyncIterator[Wire]:
        """As `websockets.connect` does."""
        parts = urlsplit(url)
        base = f"http://{parts.hostname}"
        if base in self.dead:
            raise ConnectionRefusedError
        wire = Wire(base)
        headers = [(name.lower().encode(), value.encode()) for name, value in additional_headers.items()]
        scope = {
            "type": "websocket",
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "headers": headers,
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        serving = asyncio.create_task(self.agents[base].app(scope, wire.to_app.get, wire.from_app), name="fake-wire")
        self.wires.append(wire)
        try:
            await wire.opened()
            yield wire
        finally:
            self.wires.remove(wire)
            wire.cut()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


class Wire:
    """One connection, from its client's side: what the link uses of a `ClientConnection`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.latency = 0.0
        self.close_code: int | None = None
        self.transport = SimpleNamespace(abort=self.cut)
        self.to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.to_app.put_nowait({"type": "websocket.connect"})
        self._coming: asyncio.Queue[str | bytes | ConnectionClosed] = asyncio.Queue()
        self._open: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._closed: ConnectionClosed | None = None

    async def opened(self) -> None:
        status = await self._open
        if status != 101:
            raise InvalidStatus(Response(status, "", Headers()))

    async def from_app(self, message: Any) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            self._settle(101)
        elif kind == "websocket.http.response.start":
            self._settle(message["status"])
        elif kind == "websocket.send":
            self._coming.put_nowait(message.get("text") or message.get("bytes") or "")
        elif kind == "websocket.close":
            close = Close(message.get("code", 1000), message.get("reason") or "")
            self._end(
                (ConnectionClosedOK if close.code in _OK else ConnectionClosedError)(close, close, True), close.code
            )

    def cut(self) -> None:
        """The connection is gone, on both sides."""
        self._end(ConnectionClosedError(None, None), 1006)

    def _settle(self, status: int) -> None:
        if not self._open.done():
            self._open.set_result(status)

    def _end(self, why: ConnectionClosed, code: int) -> None:
        if self._closed is None:
            self._closed, self.close_code = why, code
            self._coming.put_nowait(why)
            self.to_app.put_nowait({"type": "websocket.disconnect", "code": code})
            self._settle(503)

    async def send(self, data: str | bytes) -> None:
        if self._closed is not None:
            raise self._closed
        kind = "text" if isinstance(data, str) else "bytes"
        self.to_app.put_nowait({"type": "websocket.receive", kind: data})
        await asyncio.sleep(0)

    async def recv(self) -> str | bytes:
        got = await self._coming.get()
        if isinstance(got, ConnectionClosed):
            self._coming.put_nowait(got)
            raise got
        return got

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        while True:
            try:
                yield await self.recv()
            except ConnectionClosedOK:
                return
