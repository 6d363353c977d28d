"""A TCP relay whose connections can be cut as a network would: no closing handshake, whatever is under way is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Relay:
    """Forwards to one address. `refuse` ends each new connection at once; while `deaf`, what the target says is lost."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._open: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.accepted = 0
        self.refuse = self.deaf = False
        self.url = ""

    def cut(self) -> None:
        """Ends every connection."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            self.tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        self.accepted += 1
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, up_writer}
        try:
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer, answers=True))
        finally:
            self._open -= {writer, up_writer}
            for side in (writer, up_writer):
                side.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool = False) -> None:
        try:
            while data := await reader.read(1 << 16):
                if answers and self.deaf:
                    continue
                writer.write(data)
                await writer.drain()
            if not (answers and self.deaf):
                writer.close()
        except OSError:
            writer.transport.abort()


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[Relay]:
    """A relay on a free loopback port."""
    made = Relay(target)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        made.cut()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await server.wait_closed()
