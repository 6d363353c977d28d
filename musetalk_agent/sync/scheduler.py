"""When to show which picture: decisions only, no waiting, no I/O.

Spoken pictures are due when the voice reaches their first sample; everything else keeps the beat that the last picture set.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

LATE_FRAMES = 1.5
"""A spoken picture later than this many frames is dropped: shown, it would drag the lips behind the voice (design, "Time")."""
REPEAT_FRAMES = 3
"""Missing pictures bridged by holding the last one before the idle clip takes over."""
_STALL_FRAMES = 2.5  # a beat missed by more than this is given up and begun anew


class Act(Enum):
    """What to do with the next picture."""

    SHOW = auto()
    DROP = auto()
    IDLE = auto()
    HOLD = auto()


@dataclass(frozen=True, slots=True)
class Decision:
    """Do `act` at monotonic time `at`."""

    act: Act
    at: float


class Scheduler:
    """Paces one session's video.

    Args:
        fps: pictures per second.
        now: monotonic seconds; the first picture has just been shown.
    """

    def __init__(self, fps: int, now: float) -> None:
        self.period = 1.0 / fps
        self._last = now
        self._held = 0
        self.dropped = self.held = self.stalls = 0

    def decide(self, now: float, *, waiting: bool, due: float | None, missing: bool) -> Decision:
        """What comes next.

        Args:
            now: monotonic seconds.
            waiting: a made picture waits to be shown.
            due: when it is due; None keeps the beat.
            missing: the voice goes on, but no picture for it is there.
        """
        beat = self._last + self.period
        if now - beat > _STALL_FRAMES * self.period:
            self.stalls += 1
            self._last = now - self.period
            beat = now
        if waiting and due is not None:
            if now > due + LATE_FRAMES * self.period:
                return Decision(Act.DROP, now)
            if due <= beat + self.period / 2:
                return Decision(Act.SHOW, due)
        elif waiting:
            return Decision(Act.SHOW, beat)
        if not missing:
            self._held = 0
        elif self._held < REPEAT_FRAMES:
            return Decision(Act.HOLD, beat)
        return Decision(Act.IDLE, beat)

    def done(self, decision: Decision) -> None:
        """The decision was carried out."""
        if decision.act is Act.DROP:
            self.dropped += 1
            return
        self._last = decision.at
        if decision.act is Act.HOLD:
            self._held += 1
            self.held += 1
        elif decision.act is Act.SHOW:
            self._held = 0
