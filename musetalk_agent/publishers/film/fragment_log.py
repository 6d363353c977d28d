"""The log of a film's fragments until the orchestrator has them: numbered entries, bounded in bytes."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass

from musetalk_agent.agent_metrics import FILM_LOST
from musetalk_agent.protocol.http import FILM_ENTRY, FilmEntry

LOG_BYTES = 16 << 20
"""A minute of film at 2 Mbit/s."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; numbers count from 1."""

    number: int
    kind: FilmEntry
    payload: bytes

    def encoded(self) -> bytes:
        """As it travels."""
        return FILM_ENTRY.pack(self.number, self.kind, len(self.payload)) + self.payload


class FragmentLog:
    """Entries for one reader at a time. One event loop. The oldest fragments go when there are more than `most` bytes.

    Attributes:
        log_id: another one for each log, so that a reader knows when its numbers mean nothing.
        changed: set when there is something new.
    """

    def __init__(self, most: int = LOG_BYTES) -> None:
        self.log_id = secrets.token_hex(8)
        self.changed = asyncio.Event()
        self._most, self._bytes = most, 0
        self._entries: deque[Entry] = deque()
        self._last = 0
        self.closed = False

    def add(self, kind: FilmEntry, payload: bytes = b"") -> None:
        """Appends an entry. Nothing follows on `CLOSED`."""
        if self.closed:
            return
        self._last += 1
        self.closed = kind is FilmEntry.CLOSED
        self._entries.append(Entry(self._last, kind, payload))
        self._bytes += len(payload)
        while self._bytes > self._most and len(self._entries) > 1:
            self._bytes -= len(self._entries.popleft().payload)
            FILM_LOST.inc()
        self.changed.set()

    @property
    def last(self) -> int:
        """Number of the newest entry; 0 before the first."""
        return self._last

    def after(self, number: int) -> list[Entry]:
        """The entries behind that one; a first number that does not follow on it says that some are lost."""
        return [entry for entry in self._entries if entry.number > number]

    def forget(self, number: int) -> None:
        """The reader has stored everything up to that entry."""
        while self._entries and self._entries[0].number <= number:
            self._bytes -= len(self._entries.popleft().payload)
