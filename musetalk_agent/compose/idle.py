"""The loop of the idle clip: which frame is next."""

from __future__ import annotations

from collections import deque


class PingPongLoop:
    """Maps a position, which only grows, to an idle frame: 0, 1 … n-1, n-2 … 1, 0, 1 … A clip of one frame stands still.

    The loop never restarts: a segment takes the positions after the last one shown, and the idle clip continues after it.
    """

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"an idle clip needs at least one frame, got {frames}")
        self._frames = frames
        self._period = max(1, 2 * (frames - 1))

    def idle_index(self, position: int) -> int:
        """Idle frame shown at `position` (≥ 0)."""
        phase = position % self._period
        return phase if phase < self._frames else self._period - phase


class LoopCursor:
    """Assigns positions of the loop to idle frames, which are shown now, and to spoken frames, which are made ahead of time.

    Args:
        lead: idle frames that will be shown between the request of a segment's first frame and its display.
    """

    def __init__(self, lead: int = 1) -> None:
        self._lead = lead
        self._shown = -1
        self._reserved: deque[int] = deque()

    def reserve(self, lead: int | None = None) -> int:
        """The position of the next spoken frame. `lead` replaces the usual number of idle frames before it."""
        position = (
            self._reserved[-1] + 1 if self._reserved else self._shown + 1 + (self._lead if lead is None else lead)
        )
        self._reserved.append(position)
        return position

    @property
    def shown(self) -> int:
        """The position that is shown; -1 before the first one."""
        return self._shown

    @property
    def free(self) -> int:
        """The first position that no frame is shown or made for."""
        return (self._reserved[-1] if self._reserved else self._shown) + 1

    def show(self, position: int) -> None:
        """Records that a spoken frame was shown or dropped: the loop is at its position."""
        while self._reserved and self._reserved[0] <= position:
            self._reserved.popleft()
        self._shown = max(self._shown, position)

    def next_idle(self) -> int:
        """The position that `idle` would return now."""
        position = self._shown + 1
        if self._reserved:
            position = max(self._shown, min(position, self._reserved[0] - 1))
        return max(0, position)

    def idle(self) -> int:
        """The position of an idle frame shown now: the next one, but never past a reserved one."""
        self._shown = self.next_idle()
        return self._shown

    def release(self) -> None:
        """Cancels every reservation (a clear)."""
        self._reserved.clear()
