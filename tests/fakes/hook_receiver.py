"""A real https server that takes webhooks, and answers what it is asked to."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.waiting import NEVER_S


@dataclass(frozen=True)
class Hook:
    """One request, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@dataclass
class Receiver:
    """`answers` are statuses of the next requests (then 200), `content` is their body.

    `hold` keeps every answer back while it is clear. `misbehave` answers in place of that, and may take for ever.
    """

    port: int = 0
    hooks: list[Hook] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    content: bytes = b""
    location: str = ""
    misbehave: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, host: str = "127.0.0.1", path: str = "/hook?a=1") -> str:
        return f"https://{host}:{self.port}{path}"

    async def wait(self, count: int, within_s: float = NEVER_S) -> list[Hook]:
        """The first `count` requests."""
        end = time.monotonic() + within_s
        while len(self.hooks) < count:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), end - time.monotonic())
            except TimeoutError:
                raise AssertionError(f"{len(self.hooks)} of {count} webhooks came") from None
        return self.hooks[:count]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.hooks.append(Hook(head[0].split(" ")[1], headers, body))
            self._came.set()
            await self.hold.wait()
            if self.misbehave is not None:
                await self.misbehave(writer)
            status = self.answers.pop(0) if self.answers else 200
            where = f"Location: {self.location}\r\n" if self.location else ""
            writer.write(f"HTTP/1.1 {status} So\r\n{where}Content-Length: {len(self.content)}\r\n\r\n".encode())
            writer.write(self.content)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, TimeoutError):
                await writer.wait_closed()


@asynccontextmanager
async def receiving(context: ssl.SSLContext | None) -> AsyncIterator[Receiver]:
    """Serves on 127.0.0.1 at a free port while the block runs; over http without a context."""
    receiver = Receiver()
    receiver.hold.set()
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(receiver.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
