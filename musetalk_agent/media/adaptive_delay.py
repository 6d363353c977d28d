"""How far the sound of a live segment stays behind its PCM: enough for the sender's jitter and the engine's, and no more."""

from __future__ import annotations

FIRST_S = 0.04
"""The jitter a sender at real-time pace may have. An engine that looks ahead has that much PCM in hand already."""
LEAST_S = 0.01
STEP_S = 0.02
MOST_S = 0.16
PAUSE_S = 0.2
"""A voice that comes back later than this has paused; no head start would have bridged it."""
_DROPPED_SHARE = 50  # one picture in so many, and one more, may be dropped before the engine counts as late


class HeadStart:
    """Learns over a session: a step more whenever the sender or the engine was late, half a step less after each segment without.

    Args:
        lookahead_s: PCM beyond a picture's end that the engine waits for.
    """

    def __init__(self, lookahead_s: float) -> None:
        self._least_s = max(LEAST_S, FIRST_S - lookahead_s)
        self._dry_at: float | None = None
        self._late = False
        self.seconds = self._least_s

    def dry(self, now: float) -> None:
        """The voice has run out of PCM inside a segment, which may be the end of what it says."""
        self._dry_at = now

    def resumed(self, now: float) -> bool:
        """PCM of the same segment comes again; True when it was late and not a pause."""
        late = self._dry_at is not None and now - self._dry_at <= PAUSE_S
        self._dry_at = None
        if late:
            self._widen()
        return late

    def over(self, frames: int, dropped: int) -> None:
        """A segment of `frames` pictures has been heard, `dropped` of them were too late to be shown."""
        self._dry_at = None
        if dropped > 1 + frames // _DROPPED_SHARE:
            self._widen()
        if not self._late:
            self.seconds = max(self._least_s, self.seconds - STEP_S / 2)
        self._late = False

    def _widen(self) -> None:
        self._late = True
        self.seconds = min(MOST_S, self.seconds + STEP_S)
