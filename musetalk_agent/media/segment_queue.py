"""The session's segments in the order of playing, and the events they emit. Decisions only: positions are passed in.

A segment is *open* until its last sample was heard. What was heard lately stays for a while, so that it can be rewound when a
transport turns out to have been dead: see `PlaybackQueue.rewind`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from musetalk_agent.media.segment import KEPT_S, ROOM_RATE, Caption, Segment
from musetalk_agent.protocol.messages import Event, PlaybackFinished, PlaybackStarted

log = logging.getLogger(__name__)


class PlaybackQueue:
    """The open segments, what of them was heard, and which events were sent. Positions are those of the publisher's `PlayoutClock`.

    Args:
        emit: takes playback events; each is emitted once for a segment, however often that is played.
        show: takes the captions, as they are heard.
    """

    def __init__(self, emit: Callable[[Event], None], show: Callable[[Caption], None] = lambda _: None) -> None:
        self.open: deque[Segment] = deque()  # the first ones may be handed over whole
        self._emit = emit
        self._show_caption = show
        self._over: deque[Segment] = deque()  # heard whole, and kept for a rewind
        self._over_s = 0.0
        self._reported_s = 0.0
        self._reported: tuple[int, float] = (0, 0.0)

    def next_unplayed(self) -> Segment | None:
        """The first segment of which the sink has not everything."""
        return next((s for s in self.open if not s.enqueued_all), None)

    def speaking(self, position: int) -> bool:
        """A segment is under way, and it has speech in it now."""
        return any((s.origin is not None or s.started) and not s.rests_at(position) for s in self.open)

    def position_s(self, position: int) -> float:
        """Seconds heard through this agent. Stands still while something is heard again."""
        self._reported_s = max(self._reported_s, self._over_s + sum(s.played_s(position) for s in self.open))
        return self._reported_s

    def buffered_s(self, position: int) -> float:
        """Seconds received and not heard."""
        return sum(s.duration_s - s.played_s(position) for s in self.open)

    def heard(self, position: int) -> tuple[int, float]:
        """The segment that is being heard, or was heard last (0: none yet), and how much of it, from its own beginning.

        Stands still while something is heard again.
        """
        for segment in self.open:
            if segment.started or (segment.origin is not None and position > segment.origin):
                self._reported = max(self._reported, (segment.number, segment.heard_s(position)))
        return self._reported

    def report(self, position: int) -> list[Segment]:
        """Emits the events of what has begun and what is over by `position`, in order. Returns the segments that are over."""
        over: list[Segment] = []
        while self.open:
            segment = self.open[0]
            self._emit_started(segment, position)
            self._read(segment, position)
            if not segment.enqueued_all or (segment.origin is not None and position < segment.end_position):
                break
            if segment.origin is None and segment.frames:
                break
            self.open.popleft()
            over.append(segment)
            self._over_s += segment.duration_s
            self._reported = max(self._reported, (segment.number, segment.heard_before_s + segment.duration_s))
            self._emit_finished(segment, segment.heard_before_s + segment.duration_s, interrupted=False)
            self._show(segment.script.end())
            self._keep(segment)
        return over

    def clear(self, position: int) -> float:
        """Drops everything, what is kept too, and emits the end of each segment. Returns the seconds that are not heard."""
        dropped_s = self.buffered_s(position)
        segments, self.open = list(self.open), deque()
        self._over.clear()
        for segment in segments:
            self._over_s += segment.played_s(position)
            self._emit_started(segment, position)
            heard = max(segment.heard_s(position), self._reported[1] if segment.number == self._reported[0] else 0.0)
            self._emit_finished(segment, heard, interrupted=True)
            self._show(segment.script.end())
        return dropped_s

    def rewind(self, position: int, generation: int) -> dict[Segment, Segment]:
        """Nothing after `position` was heard: what lies there is to be played again, before anything else.

        Every open segment, and each that was over too early, gives way to one of `generation` that holds the rest of it and has
        not begun; returned are the new ones by the old.
        """
        again = [s for s in self._over if s.end_position > position]
        self._over = deque(s for s in self._over if s.end_position <= position)
        for segment in again:
            self._over_s -= segment.duration_s
        rests = {segment: segment.rest(position, generation) for segment in (*again, *self.open)}
        first = next((s for s in rests if s.origin is not None), None)
        if first is not None and first.origin is not None:
            begin = first.position_of(rests[first].skipped - first.skipped)
            if begin > position:
                lost_s = round((begin - position) / ROOM_RATE, 3)
                log.error(
                    "speech lost: rewound further than is kept", extra={"segment": first.number, "lost_s": lost_s}
                )
        self.open = deque(rests.values())
        for segment in rests:
            self._show(segment.script.end())
        return rests

    def _keep(self, segment: Segment) -> None:
        if segment.origin is None:
            return
        self._over.append(segment)
        oldest = segment.end_position - round(KEPT_S * ROOM_RATE)
        while self._over[0].end_position <= oldest:
            self._over.popleft()
        self._over[0].forget(oldest)

    def _read(self, segment: Segment, position: int) -> None:
        if segment.origin is not None and position >= segment.origin:
            self._show(segment.script.hear(segment.second_at(position)))

    def _show(self, caption: Caption | None) -> None:
        if caption is not None:
            self._show_caption(caption)

    def _emit_started(self, segment: Segment, position: int) -> None:
        if not segment.started and segment.origin is not None and position > segment.origin:
            segment.started = True
            segment.stages.event("playback.started")
            self._emit(PlaybackStarted(segment=segment.number))

    def _emit_finished(self, segment: Segment, heard_s: float, *, interrupted: bool) -> None:
        if not segment.finished:
            segment.finished = True
            segment.stages.end(interrupted=interrupted, position_s=round(heard_s, 3))
            self._emit(PlaybackFinished(segment=segment.number, position_s=round(heard_s, 3), interrupted=interrupted))
