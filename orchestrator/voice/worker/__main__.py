"""Reads commands on standard input and carries them out; reports the lines' positions on standard output.

The first message out is `hello`, and again every second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import BinaryIO, NoReturn

from pydantic import BaseModel, ValidationError

from orchestrator import worker_pipe
from orchestrator.voice.worker.playout_scheduler import DueAudio
from orchestrator.voice.worker.room_audio import ROOM_RATE
from orchestrator.voice.worker.room_publisher import RoomPublisher
from orchestrator.voice.worker_messages import (
    ClearAudio,
    EndSegment,
    Handoff,
    JoinRoom,
    LeaveRoom,
    Publish,
    SegmentPcm,
    SyncTo,
    WorkerReady,
    worker_commands,
)

BEAT_S = 1.0
_UNREAD_BYTES = 1 << 20
"""Past this much unread (bytes) the core hangs, and gets no more reports."""
_GOODBYE_S = 4.0


class CommandDispatcher:
    """The lines of this process."""

    def __init__(self, out: asyncio.WriteTransport) -> None:
        self._out = out
        self._lines: dict[str, RoomPublisher] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def report(self, message: BaseModel) -> None:
        """Queues a message for the core; never blocks."""
        if self._out.get_write_buffer_size() < _UNREAD_BYTES:
            self._out.write(worker_pipe.encode(message.model_dump(mode="json")))

    def take(self, header: bytes, payload: bytes) -> None:
        """Carries out one command. Raises ValidationError for an invalid one, ValueError for PCM with a gap."""
        said = worker_commands.validate_json(header)
        if isinstance(said, JoinRoom):
            self._join(said)
            return
        line = self._lines.get(said.line)
        if line is None:
            return
        if isinstance(said, SegmentPcm):
            line.score.append(said.segment, said.rate, said.start, payload)
        elif isinstance(said, EndSegment):
            line.score.end(said.segment)
        elif isinstance(said, SyncTo):
            _follow(line, said)
        elif isinstance(said, ClearAudio):
            line.clear()
        elif isinstance(said, Handoff):
            self.report(line.cut(said))
        elif isinstance(said, Publish):
            line.air(said.on)
        elif isinstance(said, LeaveRoom):
            line.leave()
        line.changed()

    async def aclose(self) -> None:
        """Leaves every room, in bounded time."""
        for line in self._lines.values():
            line.leave()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GOODBYE_S)

    async def beat(self) -> None:
        """Says that the process lives, for ever."""
        while True:
            self.report(WorkerReady())
            await asyncio.sleep(BEAT_S)

    def _join(self, said: JoinRoom) -> None:
        line = self._lines[said.line] = RoomPublisher(said, self.report)
        task = asyncio.create_task(line.run(), name=f"voice-{said.line}")
        self._tasks.add(task)

        def over(ended: asyncio.Task[None]) -> None:
            self._tasks.discard(ended)
            if self._lines.get(said.line) is line:
                del self._lines[said.line]

        task.add_done_callback(over)


def _follow(line: RoomPublisher, said: SyncTo) -> None:
    if said.free:
        line.score.free()
    else:
        line.score.follow(DueAudio(said.segment, round(said.heard_s * ROOM_RATE), said.at, said.held))


async def _serve(replies: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, replies)
    source = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin)
    desk = CommandDispatcher(out)
    beat = asyncio.create_task(desk.beat(), name="voice-beat")
    try:
        while True:
            head, payload = worker_pipe.lengths(await source.readexactly(worker_pipe.LENGTHS.size))
            desk.take(await source.readexactly(head), await source.readexactly(payload))
    except asyncio.IncompleteReadError:
        pass  # the core closed the pipe: the end
    except (worker_pipe.FramingError, ValidationError, ValueError) as error:
        print(f"the core talks nonsense: {error!r}"[:500], file=sys.stderr, flush=True)  # noqa: T201 - the core logs it
    finally:
        beat.cancel()
        await desk.aclose()


def main() -> NoReturn:
    """Serves until the input closes, and ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the core ends us by closing the pipe
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # native code that prints writes to the log, not into the pipe
    asyncio.run(_serve(replies))
    os._exit(0)  # the rooms are left: the SDK's own tidying up beside its threads panics now and then


if __name__ == "__main__":
    main()
