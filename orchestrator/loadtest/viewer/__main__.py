"""Reads orders on standard input, one a line, and tells on standard output what its viewers see. Ends when the input closes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import BinaryIO, NoReturn

from pydantic import BaseModel, ValidationError

from orchestrator.loadtest.messages import LINE_LIMIT, Hello, Join, line, order
from orchestrator.loadtest.viewer.room import Viewer

_UNREAD_BYTES = 4 << 20
"""Past this much unread the load generator hangs, and is told no more."""
_GOODBYE_S = 8.0


class Crowd:
    """The viewers of this process."""

    def __init__(self, out: asyncio.WriteTransport) -> None:
        self._out = out
        self._viewers: dict[str, Viewer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, message: BaseModel) -> None:
        """Queues a message; never blocks."""
        if self._out.get_write_buffer_size() < _UNREAD_BYTES:
            self._out.write(line(message))

    def take(self, text: bytes) -> None:
        """Carries out one order. Raises ValidationError for what is none."""
        said = order.validate_json(text)
        if isinstance(said, Join):
            viewer = self._viewers[said.name] = Viewer(said, self.tell)
            task = asyncio.create_task(viewer.run(), name=f"viewer-{said.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif said.name in self._viewers:
            self._viewers.pop(said.name).leave()

    async def aclose(self) -> None:
        """Everybody leaves, in bounded time."""
        for viewer in self._viewers.values():
            viewer.leave()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GOODBYE_S)


async def _serve(replies: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, replies)
    source = asyncio.StreamReader(limit=LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin)
    crowd = Crowd(out)
    crowd.tell(Hello())
    try:
        while text := await source.readline():
            crowd.take(text)
    except (ValidationError, ValueError) as error:
        print(f"no order of a load generator: {type(error).__name__}", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        await crowd.aclose()


def main() -> NoReturn:
    """Serves until the input closes, and ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the load generator ends us
    logging.getLogger("livekit").setLevel(logging.ERROR)  # what it warns of shows in the figures: gaps, losses
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # native code that prints writes to standard error, not into the pipe
    asyncio.run(_serve(replies))
    os._exit(0)  # the rooms are left: the SDK's own tidying up beside its threads panics now and then


if __name__ == "__main__":
    main()
