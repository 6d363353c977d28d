"""Where the voice is: the master clock that video follows.

A sink (LiveKit's AudioSource, an RTMP muxer, nothing) takes blocks faster than they are heard and plays them without gaps while it
has some. The clock counts what was handed over and knows when each sample is heard; now and then the sink tells its true queue.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

from musetalk_agent.clock import Clock

_SNAP_S = 0.02  # an error of more than this is a hiccup and not jitter: believe the sink at once
_TRUST = 1 / 8  # weight of one observation of the sink's queue; its own grain is 10 ms
_RUNS = 64
"""So many are remembered. The least block is 10 ms, so that they are longer than any path."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Sound from sample `begun`, at `begun_at`, until the sink ran dry: it lies on a line through the base."""

    begun: int
    begun_at: float
    base_position: float
    base_time: float


class PlayoutClock:
    """Positions are samples at `rate` since the sink was opened; the sink's silence between segments does not count.

    Args:
        clock: monotonic time.
        rate: samples per second.
        grain_s: the sink takes samples in steps of this length (10 ms in WebRTC), so a block handed to an idle sink begins half a
            step later on average.
        path_s: how much longer than a picture a sample takes from the sink to the viewer; the sink in use may set it.

    While `held`, nothing can be handed over: nobody knows when what comes next is heard.
    """

    def __init__(self, clock: Clock, rate: int, grain_s: float = 0.01, path_s: float = 0.0) -> None:
        self._clock = clock
        self._rate = rate
        self._grain_s = grain_s
        self._path_s = path_s
        self.lead_s = 0.0
        self._base_position = 0.0
        self._base_time = clock.now()
        self._begun = 0, self._base_time  # where and when the sink last began after running dry
        self._earlier: deque[_Run] = deque(
            maxlen=_RUNS
        )  # what it played before, of which the last may still be on its way
        self._settled = 0  # what lies before it will not come again
        self.handed = 0

    def position(self) -> int:
        """Samples heard by now; stands still when everything handed over was heard."""
        at = self._clock.now() - self._path_s - self.lead_s
        end, begun_at = self._begun
        if at >= begun_at:
            return min(self.handed, int(self._line(at)))
        for run in reversed(self._earlier):
            if at >= run.begun_at:
                return min(end, max(run.begun, int(run.base_position + (at - run.base_time) * self._rate)))
            end = run.begun
        return end

    @property
    def dry(self) -> bool:
        """Nothing is left in the sink; its last samples may still be on their way."""
        return self._line(self._clock.now()) >= self.handed

    def queued_s(self) -> float:
        """Seconds of sound that wait in the sink."""
        return max(0.0, (self.handed - self._line(self._clock.now())) / self._rate)

    def leaves_at(self, position: int) -> float:
        """Monotonic time at which sample `position` leaves the sink, if the sink never runs dry before it."""
        base_position, base_time = self._base_position, self._base_time
        if position < self._begun[0] and self._earlier:
            runs = (run for run in reversed(self._earlier) if position >= run.begun)
            run = next(runs, self._earlier[0])
            base_position, base_time = run.base_position, run.base_time
        return base_time + (position - base_position) / self._rate + self.lead_s

    def time_of(self, position: int) -> float:
        """Monotonic time at which sample `position` is heard, and a picture of it is due."""
        return self.leaves_at(position) + self._path_s

    def hand(self, samples: int) -> None:
        """`samples` samples are being handed to the sink now."""
        if self.dry:
            self._earlier.append(_Run(*self._begun, self._base_position, self._base_time))
            self._base_position = float(self.handed)
            self._base_time = self._clock.now() + self._grain_s / 2
            self._begun = self.handed, self._base_time
        self.handed += samples

    def observe(self, queued: int) -> None:
        """The sink says that `queued` samples wait in it now."""
        now = self._clock.now()
        error = (self.handed - queued) - self._line(now)
        if abs(error) > _SNAP_S * self._rate:
            self._base_position, self._base_time = float(self.handed - queued), now
        else:
            self._base_position += _TRUST * error

    def clear(self) -> int:
        """The sink's queue was emptied: returns how many samples will not be heard."""
        position = min(self.handed, int(self._line(self._clock.now())))
        dropped = self.handed - position
        self._settle(position)
        return dropped

    def rewind(self, position: int) -> int:
        """What was handed over after sample `position` was not heard and will come again; until then the clock stands there.

        It never goes back to before the last rewind or clear, up to which all is settled. Returns where it stands.
        """
        self._settle(max(self._settled, min(self.handed, position)))
        return self.handed

    def _settle(self, position: int) -> None:
        self.handed = self._settled = position
        self._base_position, self._base_time = float(position), self._clock.now()
        self._begun = position, self._base_time
        self._earlier.clear()

    def _line(self, now: float) -> float:
        return max(self._begun[0], self._base_position + (now - self._base_time) * self._rate)


class MovingClock(PlayoutClock):
    """While `held`, nothing can be handed over, and nobody knows when what comes next is heard: its times are infinite."""

    held = False

    def take_path(self, path_s: float) -> None:
        """Another sink is in use, from which sound takes so much longer to the viewer than a picture."""
        self._path_s = path_s

    def leaves_at(self, position: int) -> float:
        """See `PlayoutClock.leaves_at`."""
        return math.inf if self.held and position >= self.handed else super().leaves_at(position)

    def time_of(self, position: int) -> float:
        """See `PlayoutClock.time_of`."""
        return math.inf if self.held and position >= self.handed else super().time_of(position)


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
