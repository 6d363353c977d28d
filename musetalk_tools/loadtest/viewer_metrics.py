"""What one viewer saw and heard, compared with what was sent and when. No I/O; times are seconds of the monotonic clock.

Histograms hold many values in bounded memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pydantic import BaseModel

from musetalk_tools.loadtest.viewer_messages import Seen

_FARTHEST = 1_000_000  # steps from zero; what lies beyond counts as this far


class Figure(BaseModel):
    """A figure: how many values there were, and how they are distributed. Percentiles are nearest ranks."""

    unit: str
    count: int
    mean: float
    min: float
    p5: float
    p50: float
    p95: float
    p99: float
    max: float


class Histogram:
    """Values, each rounded to a whole number of `step`s."""

    def __init__(self, unit: str, step: float) -> None:
        self._unit, self._step = unit, step
        self._bins: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._bins.total()

    def add(self, value: float) -> None:
        """One more."""
        self._bins[round(max(-_FARTHEST, min(_FARTHEST, value / self._step)))] += 1

    def figure(self) -> Figure | None:
        """All of them; None when there are none."""
        bins = sorted(self._bins.items())
        if not bins:
            return None
        count = self._bins.total()
        low, p5, p50, p95, p99, high = (self._rank(bins, round(share * (count - 1))) for share in _SHARES)
        mean = self._value(sum(step * many for step, many in bins) / count)
        return Figure(unit=self._unit, count=count, mean=mean, min=low, p5=p5, p50=p50, p95=p95, p99=p99, max=high)

    def _rank(self, bins: list[tuple[int, int]], rank: int) -> float:
        for step, many in bins:
            rank -= many
            if rank < 0:
                return self._value(step)
        return self._value(bins[-1][0])

    def _value(self, steps: float) -> float:
        return round(steps * self._step, 6)


_SHARES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)


SETTLED_S = 1.0
"""Figures of a mark are taken this long after its window has closed: reports come twice a second."""
INTERRUPT_WINDOW_S = 2.0
"""How long after an interruption audio counts as what was interrupted; the sender is silent for longer."""
_SKEW_WITHIN_S = 0.5
_EARLY_S = 0.05
"""A mark is the end of the 40 ms in which its audio begins, and those may be heard before the rest was sent."""


@dataclass
class Tallies:
    """The figures of all sessions together."""

    start_s: Histogram = field(default_factory=lambda: Histogram("s", 0.001))
    first_picture_s: Histogram = field(default_factory=lambda: Histogram("s", 0.001))
    fps: Histogram = field(default_factory=lambda: Histogram("1/s", 0.01))
    gap_ms: Histogram = field(default_factory=lambda: Histogram("ms", 0.1))
    sound_ms: Histogram = field(default_factory=lambda: Histogram("ms", 0.1))
    picture_ms: Histogram = field(default_factory=lambda: Histogram("ms", 0.1))
    skew_ms: Histogram = field(default_factory=lambda: Histogram("ms", 0.1))
    skew_abs_ms: Histogram = field(default_factory=lambda: Histogram("ms", 0.1))
    interrupt_ms: Histogram = field(default_factory=lambda: Histogram("ms", 0.1))
    move_s: Histogram = field(default_factory=lambda: Histogram("s", 0.001))


@dataclass
class Window:
    """Frames since the look before: how many came after the one at `since`, the last arrival, and the largest gap that ended."""

    since: float | None = None
    frames: int = 0
    last: float = 0.0
    gap_ms: float = 0.0

    @property
    def fps(self) -> float | None:
        """0 when frames have stopped; None when there was none yet."""
        if self.since is None:
            return None
        return self.frames / (self.last - self.since) if self.frames else 0.0


class ViewerMetrics:
    """One session at its viewer. `pattern` is to be set when frames turn white with each mark (the engine `pattern`, and tones).

    Args:
        tallies: where figures go.
        window_s: see `SpeechSource`.
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
        self._offsets: list[float] = []

    def take(self, seen: Seen) -> None:
        """Takes a report of the viewer."""
        for at in seen.frames:
            self._picture(at)
        self._onsets += seen.onsets
        self._whites += seen.whites
        self._offsets += seen.offsets

    def spoke(self, mark: float) -> None:
        """The audio of a mark was sent at `mark`."""
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
        for past in (self._onsets, self._whites, self._offsets):
            while past and past[0] < oldest:
                past.pop(0)

    def window(self) -> Window:
        """The frames since the look before."""
        taken, self._window = self._window, Window(since=self.last)
        return taken

    def missing(self, fps: int) -> int:
        """Frames that should have come between the first and the last one, and did not."""
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
        after = [at for at in self._offsets if asked <= at < asked + INTERRUPT_WINDOW_S]
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
