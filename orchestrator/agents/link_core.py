"""The inner `/audio` link without its sockets: numbering, replay after a drop, events once each.

Everything that goes to the agent is an *item*. Items are numbered from 1 in the order they are pushed and kept until the agent
acknowledges them; after a drop the agent reports how many it has taken and the rest goes out again. Events of the agent are
numbered too: those seen before are dropped, a missing one is an error.
"""

from __future__ import annotations

from collections import deque

from orchestrator.audio.outgoing_segment import LinkMessage

WINDOW_S = 2.0
"""Unacknowledged seconds of audio at which the link takes no more PCM: the most that a clear can wait behind.

The agent acknowledges each large item at once, so that a round trip of 100 ms still carries twenty times real time.
"""
WINDOW_BYTES = 1 << 20
WINDOW_ITEMS = 2048


class LinkDesync(Exception):
    """The agent's counts cannot belong to this session: it lost its state, or broke the protocol."""


class LinkCore:
    """Counts of one session's link. Not thread-safe, no I/O; `connected()` begins every connection."""

    def __init__(self) -> None:
        self._unacked: deque[LinkMessage] = deque()
        self._acked = 0
        self._cursor = 0
        self._bytes = 0
        self._seconds = 0.0
        self.events_seen = 0

    @property
    def pushed(self) -> int:
        """Items numbered so far."""
        return self._acked + len(self._unacked)

    @property
    def unacked_s(self) -> float:
        """Seconds of audio the agent has not acknowledged."""
        return self._seconds

    @property
    def window_open(self) -> bool:
        """Whether more PCM may be pushed now. Control items are always pushed."""
        return self._seconds < WINDOW_S and self._bytes < WINDOW_BYTES and len(self._unacked) < WINDOW_ITEMS

    @property
    def unacked(self) -> bool:
        """Whether the agent has not acknowledged everything."""
        return bool(self._unacked)

    def adopt(self, items: int, events_seen: int) -> None:
        """Another orchestrator had this session before: it sent `items`, its sender got the events so far."""
        self._acked = self._cursor = items
        self.events_seen = events_seen

    def push(self, item: LinkMessage, *, sent: bool = False) -> None:
        """Numbers the item and keeps it until it is acknowledged. `sent`: it goes out now; only when `next_item` had none."""
        self._cursor += sent
        self._unacked.append(item)
        self._bytes += len(item.payload)
        self._seconds += item.seconds

    def next_item(self) -> LinkMessage | None:
        """The next item to send on this connection; it counts as sent."""
        if self._cursor >= self.pushed:
            return None
        item = self._unacked[self._cursor - self._acked]
        self._cursor += 1
        return item

    def connected(self, items: int) -> None:
        """A new connection whose agent has taken `items`. Raises LinkDesync when that cannot be."""
        if not self._acked <= items <= self.pushed:
            raise LinkDesync(f"the agent has taken {items} items, {self._acked} to {self.pushed} were expected")
        self._cursor = items
        self._forget(items)

    def acked(self, items: int) -> None:
        """The agent has taken `items`. Raises LinkDesync for items never sent; an older count is ignored."""
        if items > self._cursor:
            raise LinkDesync(f"the agent acknowledges {items} items, {self._cursor} were sent")
        self._forget(items)

    def is_new(self, event_id: int) -> bool:
        """Whether this event was not seen before; it counts as seen. Raises LinkDesync when one before it is missing."""
        if event_id <= self.events_seen:
            return False
        if event_id != self.events_seen + 1:
            raise LinkDesync(f"event {event_id} came after event {self.events_seen}")
        self.events_seen = event_id
        return True

    def _forget(self, items: int) -> None:
        while self._acked < items:
            item = self._unacked.popleft()
            self._acked += 1
            self._bytes -= len(item.payload)
            self._seconds = self._seconds - item.seconds if self._unacked else 0.0
