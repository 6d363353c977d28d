"""Events of sessions for their listeners: a bounded history per session, and streams that follow it.

Nothing here waits for a reader. One that reads too slowly is cut off with a last event, `overrun`, and resumes from the history by
the id of the last event it has seen.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.logs import redact
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics

HISTORY = 256
"""Events that a session's history holds, and that may wait for one reader."""
SESSIONS = 2048
"""Histories kept; past it the one goes in which nothing has happened for longest."""
STREAMS_PER_SESSION = 64
STATE = "session.state"
OVERRUN = "overrun"
TYPES = (
    STATE,
    "publisher.changed",
    "playback.started",
    "playback.finished",
    "cleared",
    "recording.ready",
    "warning",
    "error",
)
CONVERSATION_TYPES = frozenset(
    {
        "user.started",
        "user.transcript",
        "reply.queued",
        "reply.started",
        "reply.finished",
        "turn",
        "conversation.state",
        "tool.started",
        "tool.finished",
    }
)
"""Events of a conversation: their fields stand in `data`, and beside it."""
_OVER = frozenset({SessionState.STOPPED.value, SessionState.FAILED.value})


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """One event; `text` is its JSON.

    `id` rises within a session, over restarts too; 0 is for one that is not in the history. `last`: the session is over.
    """

    id: int
    session_id: str
    type: str
    text: str
    last: bool = False


Listener = Callable[[SessionEvent], None]


def event_id(now: float) -> int:
    """Least id of an event that happens at `now` (Unix time, s): ids rise over restarts and over orchestrators."""
    return int(now * 1000)


class EventStream:
    """The events of one session for one reader, on their way."""

    def __init__(self, waiting: list[SessionEvent], *, ended: bool) -> None:
        self._waiting = deque(waiting)
        self._ready = asyncio.Event()
        self.ended = ended
        """No more events will be put."""

    def put(self, event: SessionEvent, *, ends: bool) -> None:
        """Queues an event; `ends` says that it is the last one."""
        self._waiting.append(event)
        self.ended = self.ended or ends
        self._ready.set()

    def end(self) -> None:
        """No more events: what waits is still read."""
        self.ended = True
        self._ready.set()

    @property
    def full(self) -> bool:
        """As many events wait as may."""
        return len(self._waiting) >= HISTORY

    async def take(self) -> SessionEvent | None:
        """The next event, None when the stream is over. Cancelling loses nothing."""
        while not self._waiting:
            if self.ended:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._waiting.popleft()


@dataclass(eq=False)
class _History:
    events: deque[SessionEvent] = field(default_factory=deque)
    streams: set[EventStream] = field(default_factory=set)
    last_id: int = 0
    forgotten_id: int = 0
    """Newest event that the history has no room for any more."""
    over: bool = False

    def follows(self, id: int) -> bool:
        """Whether every event after this one is here."""
        return id == self.forgotten_id or any(event.id == id for event in self.events)


class EventBus:
    """Takes events from sessions and hands them to streams and listeners. All on one event loop.

    Args:
        metrics: where events and readers are counted.
        clock: Unix time in seconds.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._clock = clock
        self._histories: OrderedDict[str, _History] = OrderedDict()
        self._listeners: list[Listener] = []
        self._closed = False

    def publish(self, session_id: str, type: str, data: Mapping[str, object]) -> int:
        """Hands the event to every reader and listener, without blocking, and returns its id. `data` is JSON and holds no secret.

        `session.state` with `stopped` or `failed` ends the session's streams.
        """
        history = self._history(session_id)
        last = type == STATE and data.get("state") in _OVER
        event = self._event(history, session_id, type, data, last=last)
        history.events.append(event)
        if len(history.events) > HISTORY:
            history.forgotten_id = history.events.popleft().id
        if type == STATE:
            history.over = last  # a later event of an ended session does not begin it again
        for stream in list(history.streams):
            self._pass_on(history, stream, event)
        self._metrics.events.labels(type=type).inc()
        for listener in self._listeners:
            listener(event)
        return event.id

    def subscribe(self, session_id: str, after: int = 0) -> EventStream:
        """The session's events from its history, those with an id above `after`, and then as they come. `unsubscribe` when done.

        Raises ProblemError `quota_exceeded` when as many read this session as may.
        """
        history = self._history(session_id)
        if len(history.streams) >= STREAMS_PER_SESSION:
            raise ProblemError(
                ErrorCode.QUOTA_EXCEEDED,
                f"{STREAMS_PER_SESSION} readers follow this session's events: close one.",
                limit=STREAMS_PER_SESSION,
                retry_after_s=5,
            )
        waiting = [event for event in history.events if event.id > after]
        if after and not history.follows(after):
            message = (
                f"Events after {after} may be missing: {HISTORY} are kept, by the orchestrator that runs the session."
            )
            waiting.insert(0, self._overrun(session_id, message))
        stream = EventStream(waiting, ended=history.over or self._closed)
        history.streams.add(stream)
        self._metrics.event_streams.inc()
        return stream

    def unsubscribe(self, session_id: str, stream: EventStream) -> None:
        """The reader is gone. Without effect for one that was cut off."""
        history = self._histories.get(session_id)
        if history is not None and stream in history.streams:
            self._drop(history, stream)

    def listen(self, listener: Listener) -> None:
        """Calls `listener` with every event of every session. It must not block."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Ends every stream, and every later one, so that no reader holds up the end of the service."""
        self._closed = True
        for history in self._histories.values():
            for stream in list(history.streams):
                stream.end()

    def _pass_on(self, history: _History, stream: EventStream, event: SessionEvent) -> None:
        if not stream.full:
            stream.put(event, ends=event.last)
            return
        message = "You read too slowly: connect again with the header Last-Event-ID."
        stream.put(self._overrun(event.session_id, message), ends=True)
        self._metrics.event_overruns.inc()
        self._drop(history, stream)

    def _drop(self, history: _History, stream: EventStream) -> None:
        history.streams.discard(stream)
        self._metrics.event_streams.dec()

    def _history(self, session_id: str) -> _History:
        history = self._histories.setdefault(session_id, _History())
        self._histories.move_to_end(session_id)
        if len(self._histories) > SESSIONS:
            _, oldest = self._histories.popitem(last=False)
            for stream in list(oldest.streams):
                stream.end()
                self._drop(oldest, stream)
        return history

    def _event(
        self, history: _History, session_id: str, type: str, data: Mapping[str, object], *, last: bool
    ) -> SessionEvent:
        now = self._clock()
        history.last_id = max(history.last_id + 1, event_id(now))
        return SessionEvent(
            history.last_id, session_id, type, self._text(session_id, type, data, now, history.last_id), last
        )

    def _overrun(self, session_id: str, message: str) -> SessionEvent:
        text = self._text(session_id, OVERRUN, {"message": message}, self._clock(), None)
        return SessionEvent(0, session_id, OVERRUN, text)

    @staticmethod
    def _text(session_id: str, type: str, data: Mapping[str, object], now: float, id: int | None) -> str:
        at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        numbered = {} if id is None else {"id": id}
        beside = data if type in CONVERSATION_TYPES else {}
        body = {**beside, **numbered, "session_id": session_id, "type": type, "at": at, "data": dict(data)}
        return redact(json.dumps(body, separators=(",", ":")))
