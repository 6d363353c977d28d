"""The last minute of a session's speech that was heard, whichever agent played it. The session's film takes from it what no agent
recorded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

KEPT_S = 60.0
"""A move takes 20 s at most, and an agent that hangs is asked for its film for 5 s more."""
_BYTES_PER_SAMPLE = 2
Position = tuple[int, float]
"""A segment's number, and seconds from its beginning."""


@dataclass(frozen=True, slots=True)
class HeardPcm:
    """int16 mono PCM of a segment at `rate` (Hz); its first sample has the number `start` in the segment."""

    segment: int
    rate: int
    start: int
    pcm: bytes

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.pcm) / (_BYTES_PER_SAMPLE * self.rate)

    @property
    def end(self) -> Position:
        """The position behind it."""
        return self.segment, self.start / self.rate + self.seconds

    def between(self, after: Position, until: Position) -> HeardPcm | None:
        """The part of it between two positions; None where there is none."""
        samples = len(self.pcm) // _BYTES_PER_SAMPLE
        first = max(0, self._sample(after)) if self.segment >= after[0] else samples
        last = min(samples, self._sample(until)) if self.segment <= until[0] else 0
        if first >= last:
            return None
        pcm = self.pcm[first * _BYTES_PER_SAMPLE : last * _BYTES_PER_SAMPLE]
        return HeardPcm(self.segment, self.rate, self.start + first, pcm)

    def _sample(self, position: Position) -> int:
        """The sample at a position, counted from the first; those of other segments lie before or behind everything."""
        segment, seconds = position
        if segment != self.segment:
            return 0 if segment < self.segment else len(self.pcm) // _BYTES_PER_SAMPLE
        return round(min(seconds, 1e6) * self.rate) - self.start


class HeardSpeech:
    """Takes speech in the order in which it is heard, once it is `kept`; keeps the last `KEPT_S` seconds. One event loop."""

    def __init__(self) -> None:
        self.kept = False
        self._parts: deque[HeardPcm] = deque()
        self._seconds = 0.0
        self._end: Position = (0, 0.0)

    @property
    def end(self) -> Position:
        """The position up to which speech was heard."""
        return self._end

    def add(self, segment: int, rate: int, start: int, pcm: bytes) -> None:
        """That int16 PCM was heard, which begins with the segment's sample number `start`."""
        if not self.kept or not pcm:
            return
        part = HeardPcm(segment, rate, start, pcm)
        self._parts.append(part)
        self._end = part.end
        self._seconds += part.seconds
        while self._seconds > KEPT_S:
            self._seconds -= self._parts.popleft().seconds

    def between(self, after: Position, until: Position) -> list[HeardPcm]:
        """What was heard between two positions, in order; of what is not kept any more, nothing."""
        return [kept for part in self._parts if (kept := part.between(after, until)) is not None]
