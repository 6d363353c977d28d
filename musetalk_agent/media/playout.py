"""The playback position: the master clock that video follows, its history, and the timing of audio published by another process.

A sink (LiveKit's AudioSource, an RTMP muxer, nothing) takes blocks faster than it plays them, and plays them without gaps while it
has some. The clock counts the samples enqueued and computes when each is heard; the sink reports its true queue from time to time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from musetalk_agent.clock import Clock
from musetalk_agent.media.segment import ROOM_RATE

_SNAP_S = 0.02  # a larger error is a stall and not jitter: take the sink's value at once
_TRUST = 1 / 8  # weight of one observation of the sink's queue, which counts in steps of 10 ms
_RUNS = 64
"""How many runs are kept. A block is 10 ms at least, so that they reach further back than the delay of any transport."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Audio without a gap, from sample `begun` at `begun_at` until the sink ran dry. Position is linear in time from the base."""

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
        audio_delay_s: how much longer than a frame a sample takes from the sink to the viewer; the sink in use may set it.

    While `held`, nothing can be handed over: the time at which the next sample is heard is unknown.
    """

    def __init__(self, clock: Clock, rate: int, grain_s: float = 0.01, audio_delay_s: float = 0.0) -> None:
        self._clock = clock
        self._rate = rate
        self._grain_s = grain_s
        self._audio_delay_s = audio_delay_s
        self.video_delay_s = 0.0
        self._base_position = 0.0
        self._base_time = clock.now()
        self._begun = 0, self._base_time  # where and when the sink last began after running dry
        self._earlier: deque[_Run] = deque(
            maxlen=_RUNS
        )  # what it played before, of which the last may still be on its way
        self._settled = 0  # what lies before it will not come again
        self.enqueued = 0

    @property
    def audio_path_s(self) -> float:
        """By how much a sample's way from the sink to the viewer takes longer than a frame's."""
        return self._audio_delay_s + self.video_delay_s

    def position(self) -> int:
        """Samples heard by now; stands still when everything handed over was heard."""
        at = self._clock.now() - self._audio_delay_s - self.video_delay_s
        end, begun_at = self._begun
        if at >= begun_at:
            return min(self.enqueued, int(self._estimate(at)))
        for run in reversed(self._earlier):
            if at >= run.begun_at:
                return min(end, max(run.begun, int(run.base_position + (at - run.base_time) * self._rate)))
            end = run.begun
        return end

    @property
    def empty(self) -> bool:
        """Nothing is left in the sink; its last samples may still be on their way."""
        return self._estimate(self._clock.now()) >= self.enqueued

    def queued_s(self) -> float:
        """Seconds of audio that wait in the sink."""
        return max(0.0, (self.enqueued - self._estimate(self._clock.now())) / self._rate)

    def leaves_at(self, position: int) -> float:
        """Monotonic time at which sample `position` leaves the sink, if the sink never runs dry before it."""
        base_position, base_time = self._base_position, self._base_time
        if position < self._begun[0] and self._earlier:
            runs = (run for run in reversed(self._earlier) if position >= run.begun)
            run = next(runs, self._earlier[0])
            base_position, base_time = run.base_position, run.base_time
        return base_time + (position - base_position) / self._rate + self.video_delay_s

    def time_of(self, position: int) -> float:
        """Monotonic time at which sample `position` is heard, and a frame of it is due."""
        return self.leaves_at(position) + self._audio_delay_s

    def enqueue(self, samples: int) -> None:
        """`samples` samples are being handed to the sink now."""
        if self.empty:
            self._earlier.append(_Run(*self._begun, self._base_position, self._base_time))
            self._base_position = float(self.enqueued)
            self._base_time = self._clock.now() + self._grain_s / 2
            self._begun = self.enqueued, self._base_time
        self.enqueued += samples

    def observe(self, queued: int) -> None:
        """The sink says that `queued` samples wait in it now."""
        now = self._clock.now()
        error = (self.enqueued - queued) - self._estimate(now)
        if abs(error) > _SNAP_S * self._rate:
            self._base_position, self._base_time = float(self.enqueued - queued), now
        else:
            self._base_position += _TRUST * error

    def clear(self) -> int:
        """The sink's queue was emptied: returns how many samples will not be heard."""
        position = min(self.enqueued, int(self._estimate(self._clock.now())))
        dropped = self.enqueued - position
        self._settle(position)
        return dropped

    def rewind(self, position: int) -> int:
        """What was handed over after sample `position` was not heard and will come again; until then the clock stands there.

        It never goes back to before the last rewind or clear, up to which all is settled. Returns where it stands.
        """
        self._settle(max(self._settled, min(self.enqueued, position)))
        return self.enqueued

    def _settle(self, position: int) -> None:
        self.enqueued = self._settled = position
        self._base_position, self._base_time = float(position), self._clock.now()
        self._begun = position, self._base_time
        self._earlier.clear()

    def _estimate(self, now: float) -> float:
        return max(self._begun[0], self._base_position + (now - self._base_time) * self._rate)


class SwitchingClock(PlayoutClock):
    """While `held`, nothing can be handed over, and the time of the next sample is unknown: it is infinite."""

    held = False

    def set_audio_delay(self, audio_delay_s: float) -> None:
        """Another sink is in use, from which audio takes so much longer to the viewer than a frame."""
        self._audio_delay_s = audio_delay_s

    def leaves_at(self, position: int) -> float:
        """See `PlayoutClock.leaves_at`."""
        return math.inf if self.held and position >= self.enqueued else super().leaves_at(position)

    def time_of(self, position: int) -> float:
        """See `PlayoutClock.time_of`."""
        return math.inf if self.held and position >= self.enqueued else super().time_of(position)


_HISTORY_KEPT = 128


class PlayoutHistory:
    """Positions by time, noted a few times a second; the last 25 s of them."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, int]] = deque(maxlen=_HISTORY_KEPT)

    def note(self, now: float, position: int) -> None:
        """At `now` the audio was heard up to `position`. Forgets what was noted of later positions: they were wound back."""
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


VOICE_LEAD_S = 0.15
"""Frames are published this much later than with audio of our own: the time a message takes to the process that publishes it."""
LEAST_JUMP = ROOM_RATE // 4
"""Samples. The orchestrator's voice jumps at once by more than 200 ms, and waits for a quiet place with less: silence with a noise
floor has none, so no less than this is left out of it (`orchestrator/voice/worker/playout_scheduler.py`)."""
_CORRECT_S = 0.5  # while speech goes on, its time is reported again this often
_OFF_S = 0.005  # and at once when it has moved by more than this
_TIMINGS_KEPT = 8


@dataclass(frozen=True, slots=True)
class VoiceTiming:
    """Second `heard_s` of segment `segment` leaves at monotonic time `at`, and those after it without a gap; or the voice pauses
    there (`held`).
    """

    segment: int
    heard_s: float
    at: float
    held: bool = False


class VoiceTimingQueue:
    """What is to be reported of the audio: where it begins, pauses and goes on, and a correction from time to time.

    Only the newest few wait to be sent: an old one is worth nothing.

    Args:
        changed: called when there is something to send.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._waiting: deque[VoiceTiming] = deque(maxlen=_TIMINGS_KEPT)
        self._last: VoiceTiming | None = None

    def plays(self, segment: int, heard_s: float, at: float) -> None:
        """The voice is at second `heard_s` of the segment, which leaves at `at`."""
        due, last = VoiceTiming(segment, heard_s, at), self._last
        if last is not None and last.segment == segment and not last.held and at - last.at < _CORRECT_S:
            expected = last.at + heard_s - last.heard_s
            if abs(at - expected) <= _OFF_S:
                return
        self._add(due)

    def holds(self, segment: int, heard_s: float, at: float) -> None:
        """The voice pauses when it has come to second `heard_s` of the segment, at `at`."""
        due, last = VoiceTiming(segment, heard_s, at, held=True), self._last
        if last is None or (last.segment, last.heard_s, last.held) != (segment, heard_s, True):
            self._add(due)

    def clear(self) -> None:
        """Nothing is due any more."""
        self._waiting.clear()
        self._last = None

    def take(self) -> list[VoiceTiming]:
        """What was not sent yet, oldest first."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def _add(self, due: VoiceTiming) -> None:
        if not math.isfinite(due.at):  # no transport carries now: the time is unknown
            return
        self._last = due
        self._waiting.append(due)
        self._changed()
