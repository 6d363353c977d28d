"""What one viewer saw and heard, held against what was said and when. Sans I/O; times are monotonic seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.loadtest.messages import Seen
from orchestrator.loadtest.tally import Tally

SETTLED_S = 1.0
"""Figures of a mark are taken this long after its window has closed: reports come twice a second."""
INTERRUPT_WINDOW_S = 2.0
"""How long after an interruption sound counts as what was interrupted; the sender is silent for longer."""
_SKEW_WITHIN_S = 0.5
_EARLY_S = 0.05
"""A mark is the end of the 40 ms in which its sound begins, and those may be heard before the rest was sent."""


@dataclass
class Tallies:
    """The figures of all sessions together."""

    start_s: Tally = field(default_factory=lambda: Tally("s", 0.001))
    first_picture_s: Tally = field(default_factory=lambda: Tally("s", 0.001))
    fps: Tally = field(default_factory=lambda: Tally("1/s", 0.01))
    gap_ms: Tally = field(default_factory=lambda: Tally("ms", 0.1))
    sound_ms: Tally = field(default_factory=lambda: Tally("ms", 0.1))
    picture_ms: Tally = field(default_factory=lambda: Tally("ms", 0.1))
    skew_ms: Tally = field(default_factory=lambda: Tally("ms", 0.1))
    skew_abs_ms: Tally = field(default_factory=lambda: Tally("ms", 0.1))
    interrupt_ms: Tally = field(default_factory=lambda: Tally("ms", 0.1))
    move_s: Tally = field(default_factory=lambda: Tally("s", 0.001))


@dataclass
class Window:
    """Pictures since the look before: how many came after the one at `since`, the last arrival, and the largest gap that ended."""

    since: float | None = None
    frames: int = 0
    last: float = 0.0
    gap_ms: float = 0.0

    @property
    def fps(self) -> float | None:
        """0 when pictures have stopped; None when there was none yet."""
        if self.since is None:
            return None
        return self.frames / (self.last - self.since) if self.frames else 0.0


class Sight:
    """One session at its viewer. `pattern` is to be set when pictures turn white with each mark (the engine `pattern`, and tones).

    Args:
        tallies: where figures go.
        window_s: see `Speech`.
    """

    def __init__(self, tallies: Tallies, window_s: float) -> None:
        self.pattern = False
        self.first: float | None = None
        self.last: float | None = None
        self.frames = 0
        self.said = self.heard = self.shown = 0
        self._tallies, self._window_s = tallies, window_s
        self._window = Window()
        self._marks: list[float] = []
        self._asked: list[float] = []
        self._onsets: list[float] = []
        self._whites: list[float] = []
        self._hushes: list[float] = []

    def take(self, seen: Seen) -> None:
        """What the viewer tells."""
        for at in seen.frames:
            self._picture(at)
        self._onsets += seen.onsets
        self._whites += seen.whites
        self._hushes += seen.hushes

    def spoke(self, mark: float) -> None:
        """The sound of a mark was sent at `mark`."""
        self._marks.append(mark)

    def interrupted(self, asked: float) -> None:
        """Silence was asked for."""
        self._asked.append(asked)

    def settle(self, now: float) -> None:
        """Takes the figures of everything that is old enough, and forgets it."""
        done = now - self._window_s - SETTLED_S
        while self._marks and self._marks[0] < done:
            self._mark(self._marks.pop(0))
        while self._asked and self._asked[0] < now - INTERRUPT_WINDOW_S - SETTLED_S:
            self._interruption(self._asked.pop(0))
        oldest = now - 3 * (self._window_s + INTERRUPT_WINDOW_S + SETTLED_S)
        for past in (self._onsets, self._whites, self._hushes):
            while past and past[0] < oldest:
                past.pop(0)

    def window(self) -> Window:
        """The pictures since the look before."""
        taken, self._window = self._window, Window(since=self.last)
        return taken

    def missing(self, fps: int) -> int:
        """Pictures that should have come between the first and the last one, and did not."""
        if self.first is None or self.last is None:
            return 0
        return max(0, round((self.last - self.first) * fps) + 1 - self.frames)

    def _picture(self, at: float) -> None:
        window = self._window
        if self.last is None:
            self.first = window.since = at
        else:
            gap_ms = 1000 * (at - self.last)
            self._tallies.gap_ms.add(gap_ms)
            window.gap_ms = max(window.gap_ms, gap_ms)
            window.frames += 1
        window.last = self.last = at
        self.frames += 1

    def _mark(self, mark: float) -> None:
        self.said += 1
        heard = _take(self._onsets, mark - _EARLY_S, mark + self._window_s)
        if heard is not None:
            self.heard += 1
            self._tallies.sound_ms.add(1000 * (heard - mark))
        if not self.pattern:
            return
        seen = _take(self._whites, mark - _EARLY_S, mark + self._window_s)
        if seen is None:
            return
        self.shown += 1
        self._tallies.picture_ms.add(1000 * (seen - mark))
        if heard is not None and abs(seen - heard) <= _SKEW_WITHIN_S:
            self._tallies.skew_ms.add(1000 * (seen - heard))
            self._tallies.skew_abs_ms.add(1000 * abs(seen - heard))

    def _interruption(self, asked: float) -> None:
        after = [at for at in self._hushes if asked <= at < asked + INTERRUPT_WINDOW_S]
        if after:
            self._tallies.interrupt_ms.add(1000 * (after[-1] - asked))


def _take(events: list[float], since: float, until: float) -> float | None:
    """The first event in the window; it and those before it are used up, so that no event is two marks'."""
    for index, at in enumerate(events):
        if at >= until:
            return None
        if at >= since:
            del events[: index + 1]
            return at
    return None
