"""Does on loopback what Modal's proxy does for a server with sticky sessions: places in containers, requests pinned to them.

Its control calls have the addresses, headers and answers that the package `modal` speaks; `router_server` is a server of that
package with the look-up at Modal left away. A container is an address. One that refuses connections has died, and its places too.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import httpx
import websockets
from modal._server import _Server, _ServerSessionsManager
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.fakes.serving import plain_config, serving
from tests.waiting import NEVER_S

CONTROL_TOKEN = "the-token-of-the-workspace"
_DROPPED = frozenset({"modal-authorization", "host", "content-length", "transfer-encoding", "connection", "upgrade"})


@dataclass
class Place:
    """One sticky session."""

    container: str
    idle_s: float
    used_at: float = field(default_factory=time.monotonic)
    in_flight: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by the container that took them."""

    @property
    def idle(self) -> bool:
        return not self.in_flight and time.monotonic() - self.used_at > self.idle_s


class StickyRouter:
    """See the module.

    Args:
        containers: addresses, in the order in which they are filled up when they hold equally many.
        max_concurrency: places in each.
        queue_s: how long a start waits for one before it is refused with 503.
        packs: one container is filled up before the next.
    """

    def __init__(
        self, containers: list[str], max_concurrency: int = 8, queue_s: float = 0.2, *, packs: bool = False
    ) -> None:
        self.packs = packs
        self.containers = containers
        self.max_concurrency = max_concurrency
        self.queue_s = queue_s
        self.places: dict[str, Place] = {}
        self.ended: list[str] = []
        self.refused = 0
        self.waiting = 0
        """Starts that wait for a place."""
        self._http: httpx.AsyncClient | None = None
        methods = ["GET", "POST"]
        self.app = Starlette(
            routes=[
                Route("/_modal/sessions/start", self._start, methods=["POST"]),
                Route("/_modal/sessions/terminate", self._terminate, methods=["POST"]),
                Route("/{path:path}", self._forward, methods=methods),
                WebSocketRoute("/{path:path}", self._connect),
            ]
        )

    def of(self, container: str) -> list[Place]:
        return [place for place in self.places.values() if place.container == container]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Yields its address."""
        async with (
            httpx.AsyncClient(trust_env=False, timeout=NEVER_S) as self._http,
            serving(plain_config(self.app)) as url,
        ):
            yield url

    # --- places

    async def _start(self, request: Request) -> Response:
        if request.headers.get("modal-authorization") != f"Bearer {CONTROL_TOKEN}":
            return PlainTextResponse("unauthorized", 401)
        idle_s = int(request.headers["x-modal-server-session-idle-timeout"])
        until = time.monotonic() + self.queue_s
        self.waiting += 1
        try:
            while (container := await self._free()) is None:
                if time.monotonic() > until:
                    return PlainTextResponse("no capacity", 503)
                await asyncio.sleep(0.02)
                if await request.is_disconnected():  # the caller waits no more: the next place is another's
                    return PlainTextResponse("gone", 499)
        finally:
            self.waiting -= 1
        token = secrets.token_hex(8)
        self.places[token] = Place(container, idle_s)
        return JSONResponse({"session_id": f"sd-{token[:4]}", "token": token})

    async def _terminate(self, request: Request) -> Response:
        token = request.headers["x-modal-server-session-token"]
        self.ended.append(token)
        return Response(status_code=200 if self.places.pop(token, None) else 404)

    async def _free(self) -> str | None:
        for token in [token for token, place in self.places.items() if place.idle]:
            del self.places[token]
        held = {c: len(self.of(c)) for c in self.containers if await _alive(c)}
        free = [c for c in held if held[c] < self.max_concurrency]
        if self.packs:
            return free[0] if free else None
        return min(free, key=held.__getitem__) if free else None

    def _place(self, header: str | None) -> Place | None:
        place = self.places.get((header or "").removeprefix("Bearer "))
        if place is None or place.idle:
            self.refused += 1
            return None
        return place

    # --- what goes through

    @asynccontextmanager
    async def _using(self, place: Place) -> AsyncIterator[None]:
        place.in_flight += 1
        try:
            yield
        finally:
            place.in_flight -= 1
            place.used_at = time.monotonic()

    async def _forward(self, request: Request) -> Response:
        place = self._place(request.headers.get("modal-authorization"))
        if place is None:
            return PlainTextResponse("no such session", 401)
        assert self._http is not None
        async with self._using(place):
            try:
                answer = await self._http.request(
                    request.method,
                    place.container + request.url.path,
                    params=dict(request.query_params),
                    headers=_passed(request.headers),
                    content=await request.body(),
                )
            except httpx.TransportError:
                return PlainTextResponse("container gone", 503)
        place.requests[place.container] += 1
        kept = {k: v for k, v in answer.headers.items() if k in ("content-type", "retry-after")}
        return Response(answer.content, answer.status_code, kept)

    async def _connect(self, socket: WebSocket) -> None:
        place = self._place(socket.headers.get("modal-authorization"))
        if place is None:
            await socket.send_denial_response(PlainTextResponse("no such session", 401))
            return
        address = place.container.replace("http", "ws", 1) + socket.url.path + "?" + socket.url.query
        headers = {"authorization": socket.headers["authorization"]}
        async with self._using(place):
            try:
                upstream = await websockets.connect(
                    address, additional_headers=headers, proxy=None, compression=None, max_size=None
                )
            except websockets.InvalidStatus as error:
                reported = error.response
                await socket.send_denial_response(Response(reported.body, reported.status_code))
                return
            except OSError:
                await socket.send_denial_response(PlainTextResponse("container gone", 503))
                return
            place.requests[place.container] += 1
            await socket.accept()
            await _pump(socket, upstream)


async def _pump(socket: WebSocket, upstream: websockets.ClientConnection) -> None:
    async def up() -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await upstream.send(message["text"] if message.get("text") is not None else message["bytes"])

    async def down() -> None:
        async for message in upstream:
            await (socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message))

    tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await upstream.close()
        code, reason = upstream.close_code, upstream.close_reason
        with suppress(RuntimeError, WebSocketDisconnect):  # it closed first
            await socket.close(1011 if code in (None, 1005, 1006) else code, reason or "")


def _passed(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in _DROPPED}


async def _alive(container: str) -> bool:
    parts = urlsplit(container)
    try:
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except OSError:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


class _Aio:
    """A method of the package as it is called from asyncio."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.aio = method


@asynccontextmanager
async def router_server(url: str, monkeypatch: Any) -> AsyncIterator[Any]:
    """What `modal.Server.from_name` returns, at the router's address: the package's own sessions, without its look-ups."""

    async def reported(value: str) -> str:
        return value

    async def get_url() -> str:
        return await reported(url)

    function = SimpleNamespace(_get_flash_auth_token=lambda: reported(CONTROL_TOKEN))
    inner = SimpleNamespace(_is_sessioned=True, _get_service_function=lambda: function, get_url=get_url)
    sessions = _ServerSessionsManager(cast(_Server, inner))
    async with aiohttp.ClientSession() as client:
        monkeypatch.setattr("modal._server.ClientSessionRegistry.get_session", staticmethod(lambda: client))
        yield SimpleNamespace(
            get_url=_Aio(get_url),
            sessions=SimpleNamespace(start=_Aio(sessions.start), terminate=_Aio(sessions.terminate)),
        )
