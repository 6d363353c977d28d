"""When which position of the playout clock was heard: a short memory, for finding out later how far a dead way had come."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

_KEPT = 128


class Heard:
    """Positions by time, noted a few times a second; the last 25 s of them."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, int]] = deque(maxlen=_KEPT)

    def note(self, now: float, position: int) -> None:
        """At `now` the sound was heard up to `position`. Forgets what was noted of later positions: they were wound back."""
        while self._notes and self._notes[-1][1] > position:
            self._notes.pop()
        self._notes.append((now, position))

    def at(self, moment: float) -> int:
        """The position at `moment`: between two notes in proportion, outside of them that of the nearest."""
        notes = list(self._notes)
        if not notes:
            return 0
        index = bisect_right(notes, moment, key=lambda note: note[0])
        if index == 0 or index == len(notes):
            return notes[min(index, len(notes) - 1)][1]
        (t0, p0), (t1, p1) = notes[index - 1], notes[index]
        return p0 + int((p1 - p0) * (moment - t0) / (t1 - t0)) if t1 > t0 else p0
