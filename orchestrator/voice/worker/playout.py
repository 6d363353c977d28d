"""When each sample that was handed to LiveKit's AudioSource is heard, and of which segment it is. No I/O; time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from orchestrator.voice.worker.sound import ROOM_RATE

QUEUE_MS = 100
"""Sound that waits in the SDK."""
SOUND_PATH_S = 0.035
"""Sound reaches a viewer this much later than a picture that leaves at the same moment; the agent counts the same."""
_GRAIN_S = 0.01
_SNAP_S = 0.02  # an error of more than this is a hiccup and not jitter
_TRUST = 1 / 8


_RUNS = 16
"""So many are remembered. The least block is 10 ms, so that they are longer than the path."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Samples from `begun`, at `begun_at`, until the source ran dry: sample `base` left at `base_at`."""

    begun: int
    begun_at: float
    base: float
    base_at: float

    def left(self, at: float) -> float:
        """Samples that had left by then, if it never ran dry."""
        return max(float(self.begun), self.base + (at - self.base_at) * ROOM_RATE)


@dataclass(frozen=True, slots=True)
class Span:
    """`count` samples handed at `at` (samples since the source was opened): `position` of segment `segment`, None for silence."""

    at: int
    count: int
    segment: int
    position: int | None


class Playout:
    """Positions are samples at 48 kHz since the source was opened; its silence while nothing is handed over does not count."""

    def __init__(self, now: float) -> None:
        self._run = _Run(0, now, 0.0, now)
        self._earlier: deque[_Run] = deque(maxlen=_RUNS)  # the last samples of them may still be on their way
        self._spans: deque[Span] = deque()
        self.handed = 0
        self.segment, self.heard = 0, 0
        self.passed = 0

    def next_at(self, now: float) -> float:
        """When the next sample handed over at `now` leaves the source; it is heard `SOUND_PATH_S` later."""
        return now + _GRAIN_S / 2 if self.dry(now) else self._run.base_at + (self.handed - self._run.base) / ROOM_RATE

    def dry(self, now: float) -> bool:
        """Nothing is left in the source."""
        return self._line(now) >= self.handed

    def queued_s(self, now: float) -> float:
        """Seconds of sound that wait in the source."""
        return max(0.0, (self.handed - self._line(now)) / ROOM_RATE)

    def hand(self, now: float, spans: list[Span]) -> None:
        """Samples are being handed over; the spans' `at` count from the block's first sample."""
        if self.dry(now):
            self._earlier.append(self._run)
            begins = now + _GRAIN_S / 2
            self._run = _Run(self.handed, begins, float(self.handed), begins)
        for span in spans:
            self._spans.append(Span(self.handed, span.count, span.segment, span.position))
            self.handed += span.count

    def full(self, now: float) -> None:
        """The source's queue holds exactly `QUEUE_MS` now."""
        error = (self.handed - QUEUE_MS * ROOM_RATE / 1000) - self._line(now)
        if abs(error) > _SNAP_S * ROOM_RATE:
            self._run = replace(self._run, base=self.handed - QUEUE_MS * ROOM_RATE / 1000, base_at=now)
        else:
            self._run = replace(self._run, base=self._run.base + _TRUST * error)

    def clear(self, now: float) -> None:
        """The source's queue was emptied."""
        self.advance(now)
        self.handed = min(self.handed, int(self._line(now)))
        self._spans.clear()
        self._earlier.clear()
        self._run = _Run(self.handed, now, float(self.handed), now)

    def advance(self, now: float) -> None:
        """Moves `passed` (samples in all), `segment` and `heard` (samples of it) to what is heard at `now`."""
        line = min(float(self.handed), self._line(now - SOUND_PATH_S))
        self.passed = max(self.passed, int(line))
        while self._spans:
            span = self._spans[0]
            part = min(span.count, self.passed - span.at)
            if part <= 0:
                return
            if span.position is not None:
                self.segment, self.heard = span.segment, span.position + part
            if part < span.count:
                return
            self._spans.popleft()

    def goes_on_to(self) -> int:
        """Position of segment `segment` up to which the sound handed over goes."""
        ends = [s.position + s.count for s in self._spans if s.segment == self.segment and s.position is not None]
        return max([self.heard, *ends])

    def _line(self, now: float) -> float:
        """Samples that had left the source by `now`, which may lie before it last ran dry."""
        end, run = float("inf"), self._run
        for earlier in reversed(self._earlier):
            if now >= run.begun_at:
                break
            end, run = float(run.begun), earlier
        return min(end, run.left(now))
