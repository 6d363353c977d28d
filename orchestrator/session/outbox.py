"""What a session tells: its one `/audio` connection, also when there is none for a moment, and whoever follows its events."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from musetalk_agent.protocol.messages import CLOSE_POLICY, Ack, Failed, ServerMessage
from musetalk_agent.protocol.problems import ErrorCode
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics

QUEUE_MESSAGES = 512
"""Messages that may wait for a slow reader; past it the connection ends, for none may be left out silently."""
MISSED_MESSAGES = 256
MISSED_S = 60.0
"""Events that happen while nobody is connected are kept this long for the next connection."""


class Connection:
    """Messages on their way to one sender. The route that owns the socket drains it with `take`."""

    def __init__(self) -> None:
        self._queue: deque[ServerMessage] = deque()
        self._ready = asyncio.Event()
        self.close_code: int | None = None
        self.overrun = False

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
        """The next message, None when there is no more and the socket is to be closed. Cancelling loses nothing."""
        while not self._queue:
            if self.closing:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()


class Outbox:
    """Where a session's messages go: the newest connection, or a bounded memory for the next one; events to the bus too."""

    def __init__(self, session_id: str, metrics: Metrics, events: EventBus) -> None:
        self._session_id = session_id
        self._metrics = metrics
        self._events = events
        self._missed: deque[tuple[float, ServerMessage]] = deque()
        self.connection: Connection | None = None

    def attach(self, hello: ServerMessage) -> Connection:
        """A new connection: `hello` first, then what was missed. The older connection is told `replaced` and closed."""
        if self.connection is not None:
            self.connection.put(
                Failed(code=ErrorCode.REPLACED, message="A newer /audio connection of this session took over.")
            )
            self.connection.close(CLOSE_POLICY)
        self.connection = connection = Connection()
        connection.put(hello)
        now = time.monotonic()
        for at, message in self._missed:
            if now - at <= MISSED_S:
                connection.put(message)
        self._missed.clear()
        return connection

    def detach(self, connection: Connection) -> None:
        """The connection's socket is gone."""
        if self.connection is connection:
            self.connection = None

    def tell(self, event: ServerMessage) -> None:
        """Tells the sender of an event, and whoever follows the session."""
        self.put(event)
        self._events.publish(self._session_id, event.type, event.model_dump(exclude={"type"}, exclude_none=True))

    def put(self, message: ServerMessage) -> None:
        """Tells the sender; without one it is kept for the next."""
        if self.connection is not None and not self.connection.closing:
            self.connection.put(message)
            return
        self._missed.append((time.monotonic(), message))
        if len(self._missed) > MISSED_MESSAGES:
            self._missed.popleft()
            self._metrics.events_dropped.inc()

    def close(self, code: int) -> None:
        """Ends the connection, if there is one, after what is queued."""
        if self.connection is not None:
            self.connection.close(code)
