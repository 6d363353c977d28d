"""The idle cycle: to and fro through the clip, without showing the end frames twice and without ever jumping."""

from __future__ import annotations

from collections import deque


class IdleCycle:
    """Maps an ever-growing tick to an idle frame: 0, 1 … n-1, n-2 … 1, 0, 1 … A clip of one frame stands still.

    The cycle never restarts: a segment takes the ticks that follow the last one shown, and the idle clip goes on after it.
    """

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"an idle clip needs at least one frame, got {frames}")
        self._frames = frames
        self._period = max(1, 2 * (frames - 1))

    def pose(self, tick: int) -> int:
        """Idle frame shown at `tick` (≥ 0)."""
        phase = tick % self._period
        return phase if phase < self._frames else self._period - phase


class IdleCursor:
    """Hands out the ticks of the cycle to idle pictures, shown now, and to spoken ones, made a little ahead of time.

    Args:
        lead: ticks that will pass as idle pictures between the order of a segment's first picture and its showing.
    """

    def __init__(self, lead: int = 1) -> None:
        self._lead = lead
        self._shown = -1
        self._reserved: deque[int] = deque()

    def reserve(self, lead: int | None = None) -> int:
        """The tick of the next spoken picture. `lead`: idle pictures that pass before it, where more is known than the usual."""
        tick = self._reserved[-1] + 1 if self._reserved else self._shown + 1 + (self._lead if lead is None else lead)
        self._reserved.append(tick)
        return tick

    def show(self, tick: int) -> None:
        """A spoken picture was shown or dropped: the cycle is at its tick."""
        while self._reserved and self._reserved[0] <= tick:
            self._reserved.popleft()
        self._shown = max(self._shown, tick)

    def next_idle(self) -> int:
        """The tick that `idle` would return now."""
        tick = self._shown + 1
        if self._reserved:
            tick = max(self._shown, min(tick, self._reserved[0] - 1))
        return max(0, tick)

    def idle(self) -> int:
        """The tick of an idle picture shown now: the next one, but never past what spoken pictures have reserved."""
        self._shown = self.next_idle()
        return self._shown

    def release(self) -> None:
        """Every reservation is void (a clear)."""
        self._reserved.clear()
