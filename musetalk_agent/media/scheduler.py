"""When to play and what to show: decisions only, without waiting or I/O.

A rendered frame is due when playback reaches its first audio sample; everything else keeps the beat that the last frame set.
`AdaptiveDelay` decides how far the audio of a live segment stays behind its PCM.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

LATE_FRAMES = 1.5
"""A spoken frame later than this many frames is dropped: shown, it would drag the lips behind the voice (design, "Time")."""
REPEAT_FRAMES = 3
"""Missing frames bridged by holding the last one before the idle clip takes over."""
_STALL_FRAMES = 2.5  # a beat missed by more than this is given up and begun anew


class FrameAction(Enum):
    """What to do with the next frame."""

    SHOW = auto()
    DROP = auto()
    IDLE = auto()
    HOLD = auto()


@dataclass(frozen=True, slots=True)
class Decision:
    """Do `act` at monotonic time `at`."""

    act: FrameAction
    at: float


class Scheduler:
    """Paces one session's video.

    Args:
        fps: frames per second.
        now: monotonic seconds; the first frame has just been shown.
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
            waiting: a made frame waits to be shown.
            due: when it is due; None keeps the beat.
            missing: the voice goes on, but no frame for it is there.
        """
        beat = self._last + self.period
        if now - beat > _STALL_FRAMES * self.period:
            self.stalls += 1
            self._last = now - self.period
            beat = now
        if waiting and due is not None:
            if now > due + LATE_FRAMES * self.period:
                return Decision(FrameAction.DROP, now)
            if due <= beat + self.period / 2:
                return Decision(FrameAction.SHOW, due)
        elif waiting:
            return Decision(FrameAction.SHOW, beat)
        if not missing:
            self._held = 0
        elif self._held < REPEAT_FRAMES:
            return Decision(FrameAction.HOLD, beat)
        return Decision(FrameAction.IDLE, beat)

    def done(self, decision: Decision) -> None:
        """The decision was carried out."""
        if decision.act is FrameAction.DROP:
            self.dropped += 1
            return
        self._last = decision.at
        if decision.act is FrameAction.HOLD:
            self._held += 1
            self.held += 1
        elif decision.act is FrameAction.SHOW:
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


FIRST_S = 0.04
"""The jitter a sender at real-time pace may have. An engine that looks ahead has that much PCM in hand already."""
LEAST_S = 0.01
STEP_S = 0.02
MOST_S = 0.16
PAUSE_S = 0.2
"""A voice that comes back later than this has paused; no head start would have bridged it."""
_DROPPED_SHARE = 50  # one frame in so many, and one more, may be dropped before the engine counts as late


class AdaptiveDelay:
    """Learns over a session: a step more whenever the sender or the engine was late, half a step less after each segment without.

    Args:
        lookahead_s: PCM beyond a frame's end that the engine waits for.
    """

    def __init__(self, lookahead_s: float) -> None:
        self._least_s = max(LEAST_S, FIRST_S - lookahead_s)
        self._dry_at: float | None = None
        self._late = False
        self.seconds = self._least_s

    def on_underrun(self, now: float) -> None:
        """The voice has run out of PCM inside a segment, which may be the end of what it says."""
        self._dry_at = now

    def on_resume(self, now: float) -> bool:
        """PCM of the same segment comes again; True when it was late and not a pause."""
        late = self._dry_at is not None and now - self._dry_at <= PAUSE_S
        self._dry_at = None
        if late:
            self._widen()
        return late

    def on_segment_end(self, frames: int, dropped: int) -> None:
        """A segment of `frames` frames has been heard, `dropped` of them were too late to be shown."""
        self._dry_at = None
        if dropped > 1 + frames // _DROPPED_SHARE:
            self._widen()
        if not self._late:
            self.seconds = max(self._least_s, self.seconds - STEP_S / 2)
        self._late = False

    def _widen(self) -> None:
        self._late = True
        self.seconds = min(MOST_S, self.seconds + STEP_S)
