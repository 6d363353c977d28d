"""A web server on loopback that says whatever it is asked to, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Write = Callable[[bytes], Awaitable[None]]
Reply = bytes | Callable[[Write], Awaitable[None]]


def ok(body: bytes, *headers: str) -> bytes:
    """A whole 200 answer."""
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    """An answer that sends the caller elsewhere."""
    return f"HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


@dataclass
class Host:
    """`replies` by path; `asked` are the requests' first lines and Host headers, as they came."""

    port: int = 0
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    connections: set[asyncio.Task[None]] = field(default_factory=set)
    """Those that are open."""

    def url(self, path: str = "/a", host: str = "127.0.0.1") -> str:
        """Where a reply lies."""
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            named = next((line[6:] for line in head if line.lower().startswith("host: ")), "")
            self.asked.append((head[0], named))
            reply = self.replies.get(
                head[0].split(" ")[1].split("?")[0], b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"
            )
            if isinstance(reply, bytes):
                await write(reply)
            else:
                await reply(write)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def hosting() -> AsyncIterator[Host]:
    """Serves on 127.0.0.1 at a free port while the block runs."""
    host = Host()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(host.serve(reader, writer))
        host.connections.add(task)
        task.add_done_callback(host.connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()
        left = list(host.connections)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await server.wait_closed()
