"""What a session tells the orchestrator of by itself: events, and when each sound is due."""

from __future__ import annotations

import asyncio
from collections import deque

from musetalk_agent.protocol import messages as m
from musetalk_agent.sync.due import DueTimes

_EVENTS_KEPT = 512


class Outbox:
    """Events numbered from 1; the last 512 are kept for an orchestrator that reconnects. Due times are sent once or never.

    `changed` is set when there is something to send.
    """

    def __init__(self) -> None:
        self._events: deque[m.LinkEvent] = deque(maxlen=_EVENTS_KEPT)
        self.changed = asyncio.Event()
        self.due = DueTimes(self.changed.set)
        self.numbered = 0

    def add(self, event: m.Event) -> None:
        """Numbers and keeps an event."""
        self.numbered += 1
        self._events.append(m.LinkEvent(id=self.numbered, event=event))
        self.changed.set()

    def after(self, last_seen: int) -> list[m.LinkEvent]:
        """Events newer than `last_seen`."""
        return [e for e in self._events if e.id > last_seen]
