"""Outgoing messages of a session: to its one `/audio` connection, and to the readers of its event stream.

Events are numbered and kept, so that a connection that broke loses none: the next one gets those that were not handed to a socket,
or, where it names the last event it has seen, every later one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from musetalk_agent.protocol.messages import (
    CLOSE_POLICY,
    Ack,
    ErrorEvent,
    EventMessage,
    PublicEvent,
    ServerMessage,
    WarningEvent,
)
from musetalk_agent.protocol.problems import ErrorCode
from orchestrator.events import EventBus, event_id
from orchestrator.metrics import Metrics

QUEUE_MESSAGES = 512
"""Messages that may wait for a slow reader; beyond that the connection is closed: no message may be dropped silently."""
KEPT_EVENTS = 256
MISSED_S = 60.0
"""A connection that names no event gets the unsent events of the last so many seconds."""


class ClientQueue:
    """Messages on their way to one sender. The route that owns the socket drains it with `take`."""

    def __init__(self) -> None:
        self._queue: deque[ServerMessage] = deque()
        self._ready = asyncio.Event()
        self._taken = 0
        self.delivered = 0
        """Id of the newest event that was handed to the socket."""
        self.close_code: int | None = None
        self.overrun = False

    @property
    def waiting(self) -> int:
        """Messages that are queued."""
        return len(self._queue)

    @property
    def closing(self) -> bool:
        """No more messages will be put."""
        return self.close_code is not None

    def put(self, message: ServerMessage) -> None:
        """Queues a message. A reader that has fallen too far behind is closed instead."""
        if self.closing:
            return
        if isinstance(message, Ack) and self._queue and isinstance(self._queue[-1], Ack):
            self._queue.pop()  # a newer count says all that the older one did
        self._queue.append(message)
        if len(self._queue) > QUEUE_MESSAGES:
            self._queue.clear()
            self.overrun = True
            self.close_code = CLOSE_POLICY
        self._ready.set()

    def close(self, code: int) -> None:
        """Closes with `code` once everything queued has been sent."""
        if not self.closing:
            self.close_code = code
        self._ready.set()

    async def take(self) -> ServerMessage | None:
        """The next message, None when there is no more and the socket is to be closed. Cancelling loses nothing.

        Asking for the next says that the one before was handed to the socket.
        """
        self.delivered = max(self.delivered, self._taken)
        while not self._queue:
            if self.closing:
                return None
            self._ready.clear()
            await self._ready.wait()
        message = self._queue.popleft()
        if isinstance(message, EventMessage) and message.id is not None:
            self._taken = message.id
        return message


class EventOutbox:
    """Where a session's messages go: the newest connection; events to the bus and into a bounded history too."""

    def __init__(self, session_id: str, metrics: Metrics, events: EventBus) -> None:
        self._session_id = session_id
        self._metrics = metrics
        self._events = events
        self._history: deque[tuple[float, PublicEvent]] = deque()
        self._forgotten = 0
        self._delivered = 0
        self.connection: ClientQueue | None = None

    @property
    def waiting(self) -> int:
        """Messages that no socket has taken."""
        return self.connection.waiting if self.connection is not None else 0

    def inherit(self) -> None:
        """Another orchestrator had the session until now: what happened there is not in this history."""
        self._forgotten = event_id(time.time())

    def attach(self, hello: ServerMessage, last_event_id: int | None = None) -> ClientQueue:
        """A new connection: `hello` first, then the events that it missed. The older connection gets `replaced` and is closed.

        Args:
            last_event_id: the newest event that the sender has seen; all later ones are missed, and a warning `events_missed` comes
                first where the history no longer has them. None: those that no socket has taken, of the last minute.
        """
        if self.connection is not None:
            self._settle(self.connection)
            self.connection.put(
                ErrorEvent(code=ErrorCode.REPLACED, message="A newer /audio connection of this session took over.")
            )
            self.connection.close(CLOSE_POLICY)
        self.connection = connection = ClientQueue()
        connection.put(hello)
        for message in self._missed(last_event_id):
            connection.put(message)
        return connection

    def detach(self, connection: ClientQueue) -> None:
        """The connection's socket is gone."""
        if self.connection is connection:
            self._settle(connection)
            self.connection = None

    def publish(self, event: PublicEvent) -> None:
        """Publishes an event, and sends it to the sender."""
        data = event.model_dump(exclude={"type", "id"}, exclude_none=True)
        self.put(event.model_copy(update={"id": self._events.publish(self._session_id, event.type, data)}))

    def put(self, message: ServerMessage) -> None:
        """Sends to the sender. An event with an id is kept for connections to come."""
        if isinstance(message, EventMessage) and message.id is not None:
            self._keep(message, message.id)
        if self.connection is not None and not self.connection.closing:
            self.connection.put(message)

    def _keep(self, event: PublicEvent, id: int) -> None:
        self._history.append((time.monotonic(), event))
        if len(self._history) <= KEPT_EVENTS:
            return
        _, oldest = self._history.popleft()
        self._forgotten = oldest.id or id
        if self.connection is None and self._forgotten > self._delivered:
            self._metrics.events_dropped.inc()

    def _settle(self, connection: ClientQueue) -> None:
        self._delivered = max(self._delivered, connection.delivered)

    def _missed(self, last_event_id: int | None) -> list[PublicEvent]:
        now = time.monotonic()
        if last_event_id is None:
            return [e for at, e in self._history if (e.id or 0) > self._delivered and now - at <= MISSED_S]
        later = [e for _, e in self._history if (e.id or 0) > last_event_id]
        if last_event_id >= self._forgotten:
            return later
        message = f"Events after {last_event_id} may be missing: {KEPT_EVENTS} are kept, by the orchestrator that runs the session."
        return [WarningEvent(code="events_missed", message=message), *later]

    def close(self, code: int) -> None:
        """Ends the connection, if there is one, after what is queued."""
        if self.connection is not None:
            self.connection.close(code)
