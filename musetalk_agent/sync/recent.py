"""How well the last seconds of speech were shown: what the diagnosis and the attribute `avatar.state` go by."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

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
