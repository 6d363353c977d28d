"""When each sound is due, for a voice that somebody else publishes while this agent publishes the pictures."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from musetalk_agent.media.segment import ROOM_RATE

VOICE_LEAD_S = 0.15
"""Pictures leave this much later than with a voice of our own: the time in which the word reaches whoever publishes the voice."""
LEAST_JUMP = ROOM_RATE // 4
"""Samples. The orchestrator's voice jumps at once by more than 200 ms, and waits for a quiet place with less: silence with a noise
floor has none, so no less than this is left out of it (`orchestrator/voice/worker/playout_scheduler.py`)."""
_CORRECT_S = 0.5  # while speech goes on, its time is told again as often
_OFF_S = 0.005  # and at once when it has moved by more than this
_KEPT = 8


@dataclass(frozen=True, slots=True)
class Due:
    """Second `heard_s` of segment `segment` leaves at monotonic time `at`, and those after it without a gap; or the voice pauses
    there (`held`).
    """

    segment: int
    heard_s: float
    at: float
    held: bool = False


class DueTimes:
    """What is to be told of the voice: where it begins, pauses and goes on, and a correction now and then.

    Only the newest few wait to be sent: an old one is worth nothing.

    Args:
        changed: called when there is something to send.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._waiting: deque[Due] = deque(maxlen=_KEPT)
        self._told: Due | None = None

    def plays(self, segment: int, heard_s: float, at: float) -> None:
        """The voice is at second `heard_s` of the segment, which leaves at `at`."""
        due, told = Due(segment, heard_s, at), self._told
        if told is not None and told.segment == segment and not told.held and at - told.at < _CORRECT_S:
            expected = told.at + heard_s - told.heard_s
            if abs(at - expected) <= _OFF_S:
                return
        self._tell(due)

    def holds(self, segment: int, heard_s: float, at: float) -> None:
        """The voice pauses when it has come to second `heard_s` of the segment, at `at`."""
        due, told = Due(segment, heard_s, at, held=True), self._told
        if told is None or (told.segment, told.heard_s, told.held) != (segment, heard_s, True):
            self._tell(due)

    def clear(self) -> None:
        """Nothing is due any more."""
        self._waiting.clear()
        self._told = None

    def take(self) -> list[Due]:
        """What was not sent yet, oldest first."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def _tell(self, due: Due) -> None:
        if not math.isfinite(due.at):  # no way out carries now, so nobody knows
            return
        self._told = due
        self._waiting.append(due)
        self._changed()
