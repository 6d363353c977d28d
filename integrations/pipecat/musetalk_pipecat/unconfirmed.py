"""What was sent and is not known to have arrived, so that a lost connection costs no sample. No I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

BYTES_PER_SAMPLE = 2


@dataclass
class Chunk:
    """PCM at its place in the stream, in samples."""

    at: int
    pcm: bytes

    @property
    def end(self) -> int:
        """Place of the sample after the last."""
        return self.at + len(self.pcm) // BYTES_PER_SAMPLE

    def after(self, position: int) -> bytes:
        """The part from `position` on."""
        return self.pcm[max(0, position - self.at) * BYTES_PER_SAMPLE :]


@dataclass
class ControlMark:
    """A control message between samples. `ping` is the number of the ping that was sent behind it; 0 before."""

    at: int
    kind: str
    ping: int = 0


class Unconfirmed:
    """The tail of a new session's stream. The session's count confirms PCM, the answer to the ping behind it a mark."""

    def __init__(self) -> None:
        self._items: deque[Chunk | ControlMark] = deque()
        self._position = 0
        self._pings = 0
        self._pongs = 0

    def pcm(self, data: bytes) -> Chunk:
        """Takes whole samples at the end of the stream."""
        chunk = Chunk(self._position, data)
        self._items.append(chunk)
        self._position = chunk.end
        return chunk

    def mark(self, kind: str) -> ControlMark:
        """Takes a control message at the end of the stream."""
        mark = ControlMark(self._position, kind)
        self._items.append(mark)
        return mark

    def pinged(self, mark: ControlMark) -> None:
        """A ping was sent behind this mark."""
        self._pings += 1
        mark.ping = self._pings

    def greeted(self, received: int) -> list[Chunk | ControlMark]:
        """A connection begins, and the session has `received` samples: what is to be sent (again), cut to what it lacks."""
        self._pings = self._pongs = 0
        self.received(received)
        for item in self._items:
            if isinstance(item, Chunk) and item.at < received:
                item.pcm, item.at = item.after(received), received
        return list(self._items)

    def received(self, count: int) -> None:
        """The session has so many samples. A mark before them has arrived too, for messages keep their order."""
        while self._items and self._before(self._items[0], count):
            self._items.popleft()

    def ponged(self) -> None:
        """A ping was answered: the marks before it have arrived."""
        self._pongs += 1
        arrived = [item for item in self._items if isinstance(item, ControlMark) and 0 < item.ping <= self._pongs]
        for mark in arrived:
            self._items.remove(mark)

    @staticmethod
    def _before(item: Chunk | ControlMark, count: int) -> bool:
        return item.end <= count if isinstance(item, Chunk) else item.at < count
