"""How many speaking sessions the card holds, from what it was measured to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HEADROOM = 0.75
"""Share of the measured pace that is promised. The rest is for preparation of new avatars beside speech (its stream gives way, but
a kernel that runs is not interrupted), for batches that are not full, and for catching up after a hiccup: at three quarters a
backlog of one frame a session is worked off within three frames."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds per batch, by bucket size."""

    seconds: Mapping[int, float] = field(default_factory=dict)

    @property
    def frames_per_second(self) -> float:
        """At the bucket that is fastest per frame; 0 before it was measured."""
        return max((size / seconds for size, seconds in self.seconds.items() if seconds > 0), default=0.0)

    def capacity(self, fps: int) -> int:
        """Sessions that may all speak at once at `fps`, with head-room; 0 where not even one keeps up."""
        return int(HEADROOM * self.frames_per_second / fps)
