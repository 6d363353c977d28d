"""A TCP server that accepts, perhaps says something, perhaps trickles, and never comes to an end by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def stuck(
    first: bytes | Callable[[bytes], bytes] = b"", then: bytes = b"", every_s: float = 0.05
) -> AsyncIterator[int]:
    """Its port. Each connection gets `first`, then `then` again and again; it ends when its peer leaves or the server ends.

    `first` may be a function: it makes the answer of the HTTP head that came.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            opening = first if isinstance(first, bytes) else first(await reader.readuntil(b"\r\n\r\n"))
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()
            return
        left = asyncio.create_task(_drained(reader))
        try:
            writer.write(opening)
            while not left.done():
                await asyncio.wait({left}, timeout=every_s)
                writer.write(then)
                with suppress(ConnectionError):
                    await writer.drain()
        finally:
            left.cancel()
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _drained(reader: asyncio.StreamReader) -> None:
    """Returns when the peer has left."""
    with suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass
