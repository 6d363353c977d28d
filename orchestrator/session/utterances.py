"""The traces of a session's utterances: one span each, from its first sound or text until it is over."""

from __future__ import annotations

from musetalk_agent.protocol import traces
from musetalk_agent.protocol.messages import PlaybackFinished, PlaybackStarted, ServerMessage
from musetalk_agent.protocol.traces import OFF, Span


class Utterances:
    """Spans of the open segments. The agent's part of a trace hangs on them, also after the session has moved."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._open: dict[int, Span] = {}

    def begin(self, segment: int) -> str | None:
        """A segment was opened, by the request that is being answered if one is. Returns its span for others to hang on."""
        span = traces.begin("utterance", traces.current(), session_id=self._session_id, segment=segment)
        if span is not OFF:
            self._open[segment] = span
        return span.traceparent

    def child(self, segment: int, name: str) -> Span:
        """A part of an utterance, which the caller ends."""
        span = self._open.get(segment)
        return traces.begin(name, span.traceparent) if span is not None else OFF

    def tell(self, event: ServerMessage) -> None:
        """What the session's sender is told."""
        if isinstance(event, PlaybackStarted) and event.segment in self._open:
            self._open[event.segment].event(event.type)
        elif isinstance(event, PlaybackFinished) and event.segment in self._open:
            span = self._open.pop(event.segment)
            span.set(interrupted=event.interrupted, position_s=event.position_s)
            span.end()

    def lost(self, cause: str) -> None:
        """The agent was lost; another one goes on."""
        for span in self._open.values():
            span.event("agent.lost", cause=cause)
