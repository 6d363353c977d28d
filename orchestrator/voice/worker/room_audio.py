"""Audio for the room: segments resampled to 48 kHz, and when LiveKit plays each sample of its queue. No I/O; time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]
ROOM_RATE = 48000
_HALF_WIDTH = 16  # zero crossings on each side: 77-82 dB signal to error
_KAISER_BETA = 8.0
_ROLL_OFF = 0.92


@lru_cache(maxsize=16)
def _filters(up: int, down: int) -> tuple[NDArray[np.float32], int]:
    """Filter of each phase `[up, taps]`, and how many input samples lie before the centre one."""
    cutoff = _ROLL_OFF * min(1.0, up / down)
    reach = ceil(_HALF_WIDTH / min(1.0, up / down))
    distance = np.arange(-reach + 1, reach + 1)[None, :] - np.arange(up)[:, None] / up
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / reach) ** 2, 0, 1))) / np.i0(_KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * distance) * window
    taps /= taps.sum(axis=1, keepdims=True)
    return taps.astype(np.float32), reach - 1


class SegmentSound:
    """PCM of one segment from input sample `start` on. Positions are samples at 48 kHz from the segment's own beginning."""

    def __init__(self, number: int, rate: int, start: int) -> None:
        self.number = number
        self.rate = rate
        self.ended = False
        divisor = gcd(rate, ROOM_RATE)
        self._up, self._down = ROOM_RATE // divisor, rate // divisor
        self._pcm = bytearray()
        self._first = start  # input index of the first sample kept

    @property
    def begin(self) -> int:
        """Position of the first sample kept."""
        return -(-self._first * self._up // self._down)

    @property
    def _past(self) -> int:
        return self._first + len(self._pcm) // 2

    @property
    def ready(self) -> int:
        """Position up to which samples can be made; the segment's end once it has ended."""
        if self.ended or self._up == self._down:
            return -(-self._past * self._up // self._down)
        taps, before = _filters(self._up, self._down)
        last = self._past - (int(taps.shape[1]) - before)  # the last centre whose taps are all here
        return max(self.begin, self._up * last // self._down + 1)

    def append(self, start: int, pcm: bytes) -> None:
        """More PCM. What is here already is skipped; a gap is a fault of the core and raises ValueError."""
        skip = self._past - start
        if skip < 0:
            raise ValueError(f"segment {self.number}: samples {self._past} to {start} are missing")
        self._pcm += pcm[2 * skip :]

    def forget(self, position: int) -> None:
        """Nothing before `position` is asked for again."""
        _, before = _filters(self._up, self._down)
        drop = min(position * self._down // self._up - before - self._first, len(self._pcm) // 2)
        if drop > 0:
            del self._pcm[: 2 * drop]
            self._first += drop

    def take(self, position: int, count: int) -> NDArray[np.float32]:
        """`count` samples from `position` on; what is not here is silence."""
        if count <= 0:
            return np.zeros(0, np.float32)
        if self._up == self._down:
            return self._input(position, position + count)
        taps, before = _filters(self._up, self._down)
        at = np.arange(position, position + count, dtype=np.int64) * self._down
        centre, phase = at // self._up, at % self._up
        low = int(centre[0]) - before
        held = self._input(low, int(centre[-1]) - before + taps.shape[1])
        rows = np.lib.stride_tricks.sliding_window_view(held, taps.shape[1])[centre - before - low]
        made: NDArray[np.float32] = np.einsum("ij,ij->i", rows, taps[phase])
        return made

    def _input(self, low: int, high: int) -> NDArray[np.float32]:
        out = np.zeros(high - low, np.float32)
        first, past = max(low, self._first), min(high, self._past)
        if past > first:
            here = bytes(memoryview(self._pcm)[2 * (first - self._first) : 2 * (past - self._first)])
            out[first - low : past - low] = np.frombuffer(here, np.int16)
        return out


QUEUE_MS = 100
"""Sound that waits in the SDK."""
AUDIO_PATH_S = 0.035
"""Sound reaches a viewer this much later than a picture that leaves at the same moment; the agent counts the same."""
_GRAIN_S = 0.01
_SNAP_S = 0.02  # an error of more than this is a hiccup and not jitter
_TRUST = 1 / 8


_RUNS = 16
"""So many are remembered. The least block is 10 ms, so that they are longer than the path."""


@dataclass(frozen=True, slots=True)
class _SourceRun:
    """Samples from `begun`, at `begun_at`, until the source ran dry: sample `base` left at `base_at`."""

    begun: int
    begun_at: float
    base: float
    base_at: float

    def left(self, at: float) -> float:
        """Samples that had left by then, if it never ran dry."""
        return max(float(self.begun), self.base + (at - self.base_at) * ROOM_RATE)


@dataclass(frozen=True, slots=True)
class AudioSpan:
    """`count` samples handed at `at` (samples since the source was opened): `position` of segment `segment`, None for silence."""

    at: int
    count: int
    segment: int
    position: int | None


class Playout:
    """Positions are samples at 48 kHz since the source was opened; its silence while nothing is handed over does not count."""

    def __init__(self, now: float) -> None:
        self._run = _SourceRun(0, now, 0.0, now)
        self._earlier: deque[_SourceRun] = deque(maxlen=_RUNS)  # the last samples of them may still be on their way
        self._spans: deque[AudioSpan] = deque()
        self.handed = 0
        self.segment, self.heard = 0, 0
        self.passed = 0

    def next_at(self, now: float) -> float:
        """When the next sample handed over at `now` leaves the source; it is heard `AUDIO_PATH_S` later."""
        return now + _GRAIN_S / 2 if self.dry(now) else self._run.base_at + (self.handed - self._run.base) / ROOM_RATE

    def dry(self, now: float) -> bool:
        """Nothing is left in the source."""
        return self._line(now) >= self.handed

    def queued_s(self, now: float) -> float:
        """Seconds of sound that wait in the source."""
        return max(0.0, (self.handed - self._line(now)) / ROOM_RATE)

    def hand(self, now: float, spans: list[AudioSpan]) -> None:
        """Samples are being handed over; the spans' `at` count from the block's first sample."""
        if self.dry(now):
            self._earlier.append(self._run)
            begins = now + _GRAIN_S / 2
            self._run = _SourceRun(self.handed, begins, float(self.handed), begins)
        for span in spans:
            self._spans.append(AudioSpan(self.handed, span.count, span.segment, span.position))
            self.handed += span.count

    def full(self, now: float) -> None:
        """The source's queue holds exactly `QUEUE_MS` now."""
        error = (self.handed - QUEUE_MS * ROOM_RATE / 1000) - self._line(now)
        if abs(error) > _SNAP_S * ROOM_RATE:
            self._run = replace(self._run, base=self.handed - QUEUE_MS * ROOM_RATE / 1000, base_at=now)
        else:
            self._run = replace(self._run, base=self._run.base + _TRUST * error)

    def clear(self, now: float) -> None:
        """The source's queue was emptied."""
        self.advance(now)
        self.handed = min(self.handed, int(self._line(now)))
        self._spans.clear()
        self._earlier.clear()
        self._run = _SourceRun(self.handed, now, float(self.handed), now)

    def advance(self, now: float) -> None:
        """Moves `passed` (samples in all), `segment` and `heard` (samples of it) to what is heard at `now`."""
        line = min(float(self.handed), self._line(now - AUDIO_PATH_S))
        self.passed = max(self.passed, int(line))
        while self._spans:
            span = self._spans[0]
            part = min(span.count, self.passed - span.at)
            if part <= 0:
                return
            if span.position is not None:
                self.segment, self.heard = span.segment, span.position + part
            if part < span.count:
                return
            self._spans.popleft()

    def goes_on_to(self) -> int:
        """Position of segment `segment` up to which the sound handed over goes."""
        ends = [s.position + s.count for s in self._spans if s.segment == self.segment and s.position is not None]
        return max([self.heard, *ends])

    def _line(self, now: float) -> float:
        """Samples that had left the source by `now`, which may lie before it last ran dry."""
        end, run = float("inf"), self._run
        for earlier in reversed(self._earlier):
            if now >= run.begun_at:
                break
            end, run = float(run.begun), earlier
        return min(end, run.left(now))
