"""The master clock of a session whose sink may change, and may be missing for a while."""

from __future__ import annotations

import math

from musetalk_agent.sync.playout import PlayoutClock


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
