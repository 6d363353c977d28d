"""What a viewer reads: every piece of every caption, with the time it came."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from livekit import rtc
from livekit.rtc.data_stream import StreamError

TOPIC = "lk.transcription"


@dataclass
class Line:
    """One text stream. `attributes` are those of its end once it is over."""

    identity: str
    attributes: dict[str, str]
    pieces: list[tuple[float, str]] = field(default_factory=list)
    over: bool = False

    @property
    def text(self) -> str:
        return "".join(piece for _, piece in self.pieces)


@dataclass
class Reader:
    """Reads the captions of a room."""

    lines: list[Line] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def read(self, room: rtc.Room) -> Reader:
        room.register_text_stream_handler(TOPIC, self._begun)
        return self

    def _begun(self, stream: rtc.TextStreamReader, identity: str) -> None:
        line = Line(identity, dict(stream.info.attributes or {}))
        self.lines.append(line)
        self._tasks.append(asyncio.create_task(self._follow(stream, line)))

    async def _follow(self, stream: rtc.TextStreamReader, line: Line) -> None:
        try:
            async for piece in stream:
                line.pieces.append((time.monotonic(), piece))
        except StreamError:  # its sender is gone
            return
        line.attributes, line.over = dict(stream.info.attributes or {}), True

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
