"""Cuts a fragmented MP4 into the pieces that can be sent and stored one by one: its header, and its fragments."""

from __future__ import annotations

from collections.abc import Iterator

from musetalk_agent.protocol.http import FilmEntry

_LAST = {b"moov": FilmEntry.HEADER, b"mdat": FilmEntry.FRAGMENT}
_HEAD = 8


class PieceSplitter:
    """Takes bytes in any portions, gives whole pieces. What an MP4 has beside those boxes belongs to the piece that follows."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._at = 0

    def push(self, data: bytes) -> Iterator[tuple[FilmEntry, bytes]]:
        """The kinds and bytes of the pieces that are whole now."""
        self._waiting += data
        while len(self._waiting) - self._at >= _HEAD:
            size = int.from_bytes(self._waiting[self._at : self._at + 4], "big")
            kind = bytes(self._waiting[self._at + 4 : self._at + _HEAD])
            if size < _HEAD:
                raise ValueError(f"a box {kind!r} of {size} bytes")
            if len(self._waiting) < self._at + size:
                return
            self._at += size
            if kind in _LAST:
                piece = bytes(self._waiting[: self._at])
                del self._waiting[: self._at]
                self._at = 0
                yield _LAST[kind], piece
