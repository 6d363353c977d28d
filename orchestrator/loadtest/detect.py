"""When loud sound begins and ends, and when a picture turns white. Pure: times are passed in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LOUD = 2000
"""Amplitude (int16) from which sound is loud: speech and the test tone are, what a codec makes of silence is not."""
QUIET_S = 0.1
"""Sound has ended when none was loud for this long."""
WHITE = 160
"""Luma from which the centre is white; the pattern's white is 235, its black 16."""


class Loudness:
    """Follows sound at `rate` Hz. `onsets` and `hushes` are for the caller to take away."""

    def __init__(self, rate: int) -> None:
        self.onsets: list[float] = []
        self.hushes: list[float] = []
        self._rate = rate
        self._last: float | None = None

    def push(self, at: float, block: npt.NDArray[np.int16]) -> None:
        """`block` came at `at`, which is when its last sample did."""
        loud = np.flatnonzero(np.abs(block.astype(np.int32)) > LOUD)
        if len(loud):
            moments = at - (len(block) - 1 - loud) / self._rate
            for stretch in np.split(moments, np.flatnonzero(np.diff(moments) > QUIET_S) + 1):
                self._settle(stretch[0])
                if self._last is None:
                    self.onsets.append(float(stretch[0]))
                self._last = float(stretch[-1])
        self._settle(at)

    def _settle(self, now: float) -> None:
        if self._last is not None and now - self._last > QUIET_S:
            self.hushes.append(self._last)
            self._last = None


class Whiteness:
    """Follows pictures. `whites` is for the caller to take away."""

    def __init__(self) -> None:
        self.whites: list[float] = []
        self._white = True  # what a viewer sees first did not turn white

    def push(self, at: float, luma: npt.NDArray[np.uint8]) -> None:
        """A picture, [H, W], came at `at`. Only its central eighth or so is looked at."""
        height, width = luma.shape
        centre = luma[height * 3 // 8 : height * 5 // 8 : 4, width * 3 // 8 : width * 5 // 8 : 4]
        white = float(centre.mean()) > WHITE
        if white and not self._white:
            self.whites.append(at)
        self._white = white
