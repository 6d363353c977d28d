"""The order in which the frames of the idle clip are looped."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from random import Random

_VARIED_FROM = 40
"""Frames. A shorter clip has no room for other ends."""
_ENDS = 0.1
"""Share of a clip at each end within which it turns around."""
_POSITIONS = 8192
"""Of a varied loop, about: five and a half minutes at 25 frames a second, after which it begins anew."""


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


class VariedLoop:
    """A `PingPongLoop` that turns around elsewhere each time, near the ends of the clip: when it repeats is not seen. It is
    the same for every clip of as many frames, begins with the whole clip, and comes back to its beginning after some minutes.
    """

    def __init__(self, frames: int) -> None:
        if frames < 2:
            raise ValueError(f"a varied loop needs at least two frames, got {frames}")
        random, room, last = Random(frames), int(_ENDS * frames), frames - 1
        order, turns = list(range(frames)), max(1, _POSITIONS // (2 * frames))
        for turn in range(turns):
            low = 0 if turn == turns - 1 else random.randint(0, room)
            order += range(order[-1] - 1, low - 1, -1)
            if turn < turns - 1:
                order += range(low + 1, last - random.randint(0, room) + 1)
        self._order = order[:-1]  # the next round begins with its last one

    def idle_index(self, position: int) -> int:
        """Idle frame shown at `position` (≥ 0)."""
        return self._order[position % len(self._order)]


@lru_cache(maxsize=32)
def idle_loop(frames: int) -> PingPongLoop | VariedLoop:
    """The loop of a live clip. Both begin with the whole clip: frame `k` is shown at position `k`."""
    return VariedLoop(frames) if frames >= _VARIED_FROM else PingPongLoop(frames)


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
