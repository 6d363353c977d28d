"""When to show which picture: decisions only, no waiting, no I/O.

Spoken pictures are due when the voice reaches their first sample; everything else keeps the beat that the last picture set.
"""

from __future__ import annotations

from collections import deque
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


WINDOW_S = 5.0
"""Frames older than this no longer count: an avatar that recovered says so after five seconds, whether it speaks or not."""
_FEWEST_S = 0.5
"""With less speech than this in the window a single late frame would weigh too much."""
_DEGRADED_ABOVE, _RECOVERED_BELOW = 0.1, 0.05
"""Shares of the frames in the window; two of them, so that an avatar at the limit does not change its state at every look."""


class Outcome(Enum):
    """What became of a frame of speech."""

    SHOWN = auto()
    LATE = auto()
    FAILED = auto()


class RecentFrames:
    """Frames of speech of the last `WINDOW_S` by their outcome. Times are seconds of the session's clock.

    Args:
        fps: frames per second.
    """

    def __init__(self, fps: int) -> None:
        self._fewest = max(1, round(_FEWEST_S * fps))
        self._frames: deque[tuple[float, Outcome]] = deque(maxlen=round(2 * WINDOW_S * fps))
        self._degraded = False

    def note(self, now: float, outcome: Outcome) -> None:
        """A frame was due now."""
        self._frames.append((now, outcome))

    def share(self, now: float, outcome: Outcome) -> float:
        """Share of the window's frames with this outcome, 0 … 1; 0 with less than half a second of speech in the window."""
        while self._frames and self._frames[0][0] < now - WINDOW_S:
            self._frames.popleft()
        if len(self._frames) < self._fewest:
            return 0.0
        return sum(found is outcome for _, found in self._frames) / len(self._frames)

    def degraded(self, now: float) -> bool:
        """Whether more than a tenth of the frames were late or failed; back to False when it is less than a twentieth."""
        share = self.share(now, Outcome.LATE) + self.share(now, Outcome.FAILED)
        self._degraded = share > (_RECOVERED_BELOW if self._degraded else _DEGRADED_ABOVE)
        return self._degraded
