"""The limits that processor, memory and pacing set: each begins with an estimate at the start and is corrected by measurements in
service.

A correction only decides on new sessions: none ends for it. A measurement near a limit does not change the answer at each look:
`Steady` follows a measurement only when it has gone far enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from musetalk_agent.admission.costs import IDLE_SHARE, Demand
from musetalk_agent.admission.machine import Memory
from musetalk_agent.card_estimates import PACED_MOST

MIB = 1 << 20
_NEWEST = 0.3  # weight of one look: a change is followed over half a minute
_BAND = 0.1
_LEAST_CORES = 0.05  # sessions that are to cost less than this say nothing of the machine
_FACTORS = (0.25, 8.0)
_SESSION_BYTES = (8 * MIB, 2048 * MIB)
_KEPT_BACK, _KEPT_SHARE = 512 * MIB, 0.25
LATE, WELL = 0.5, 0.25
"""The 95th percentile of the frames' lateness, by the time of a frame: more is too busy, and less than the other is well."""
LATE_LOOKS, WELL_LOOKS = 2, 6
"""Looks in a row until the limit falls, and until it rises by one."""


class Steady:
    """A mean over the last looks, and the value in use, which follows the mean when they differ by more than a tenth."""

    def __init__(self, value: float) -> None:
        self.mean = self.value = value

    def add(self, measured: float) -> None:
        """A new measurement."""
        self.mean += _NEWEST * (measured - self.mean)
        if abs(self.mean - self.value) > _BAND * abs(self.value):
            self.value = self.mean


@dataclass(frozen=True, slots=True)
class SessionLoad:
    """One session over the time since the look before: what it asks for, and the share of the time in which it spoke (0 … 1).

    `watched`: a viewer or a film gets its frames.
    """

    demand: Demand
    speaking: float
    watched: bool = True

    @property
    def cores(self) -> float:
        """What it should have taken."""
        if not self.watched:
            return self.demand.cores_unwatched
        return self.demand.cores * (IDLE_SHARE + (1 - IDLE_SHARE) * self.speaking)


class Processor:
    """Cores over what sessions cost.

    Args:
        cores: that this process may use.
    """

    def __init__(self, cores: float) -> None:
        self.cores = cores
        self._factor = Steady(1.0)

    @property
    def factor(self) -> float:
        """What sessions cost here by what the table says."""
        return self._factor.value

    def started(self, factor: float) -> None:
        """How slow this machine is by the one of the table, as a measurement at the start says."""
        self._factor = Steady(_within(_FACTORS, factor))

    def observe(self, cores_used: float, looks: Sequence[SessionLoad]) -> None:
        """What the process used on average while exactly these sessions were there."""
        expected = sum(look.cores for look in looks)
        if expected >= _LEAST_CORES:
            self._factor.add(_within(_FACTORS, cores_used / expected))

    def holds(self, held: Sequence[Demand], more: Demand) -> int:
        """Sessions in all: those that are held, and as many like `more` as fit beside them. At least 1; fewer than are held where
        those are too many already."""
        left = self.cores - self.factor * sum(each.cores for each in held)
        return max(1, len(held) + floor(left / (self.factor * more.cores)))

    def why(self, more: Demand) -> str:
        """For people: where the number comes from."""
        return f"its processor: {self.cores:.3g} cores, {self.factor * more.cores:.2f} of one for each more"


class MemoryTerm:
    """Free memory over what sessions take."""

    def __init__(self) -> None:
        self._now: Memory | None = None
        self._base: int | None = None  # held by the process without a session
        self._counted = 0  # sessions whose memory is not free any more
        self._free = 0.0
        self._factor = Steady(1.0)

    def observe(self, now: Memory | None, held: Sequence[Demand]) -> None:
        """What the system says while exactly these sessions are there; None where it says nothing, which sets no limit."""
        self._now, self._counted = now, len(held)
        if now is None:
            return
        # less is followed at once, and more only when it is much more
        if now.free < self._free or now.free > (1 + _BAND) * self._free:
            self._free = now.free
        if not held:
            self._base = now.own
        elif self._base is not None:
            asked = sum(each.memory for each in held)
            grown = _within(_SESSION_BYTES, (now.own - self._base) / len(held)) * len(held)
            self._factor.add(grown / asked)

    def holds(self, more: Demand) -> int | None:
        """Sessions in all: those of the last look, and as many like `more` as what is free has room for. At least 1."""
        if self._now is None:
            return None
        return max(1, self._counted + floor(self._left / self._each(more)))

    def why(self, more: Demand) -> str:
        """For people: where the number comes from."""
        free, each = self._free / MIB, self._each(more) / MIB
        kept = (self._free - self._left) / MIB
        return f"its memory: {free:.0f} MiB free, of which {kept:.0f} are kept back, {each:.0f} for each more"

    @property
    def _left(self) -> float:
        kept = min(_KEPT_BACK, _KEPT_SHARE * self._now.limit) if self._now is not None else 0
        return self._free - kept

    def _each(self, more: Demand) -> float:
        return max(_SESSION_BYTES[0], self._factor.value * more.memory)


class Pacing:
    """Rooms that one process paces: one event loop hands every frame over, and where it comes late it has too many.

    The limit falls to one less than are there after two looks in a row that are late, and rises by one after six that are well.
    """

    def __init__(self) -> None:
        self._most = self.limit = PACED_MOST
        self.late: float | None = None
        self._late_looks = self._well_looks = 0

    def started(self, factor: float) -> None:
        """How slow this machine is by the one of the figures: a slower one paces fewer, a faster one no more."""
        self._most = self.limit = max(1, floor(PACED_MOST / max(1.0, factor)))

    def observe(self, late: Sequence[float], rooms: int) -> None:
        """How late each frame since the last look was, by the time of a frame, with so many rooms."""
        self.late = sorted(late)[len(late) * 95 // 100] if late else None
        busy = self.late is not None and self.late > LATE
        well = self.late is None or self.late < WELL
        self._late_looks = self._late_looks + 1 if busy else 0
        self._well_looks = self._well_looks + 1 if well else 0
        if self._late_looks >= LATE_LOOKS:
            self._late_looks = 0
            self.limit = max(1, min(self.limit, rooms - 1))
        elif self._well_looks >= WELL_LOOKS:
            self._well_looks = 0
            self.limit = min(self._most, self.limit + 1)

    def why(self) -> str:
        """For people: where the number comes from."""
        if self.limit == self._most:
            return f"what one process paces: {self._most} rooms"
        now = f"{self.late:.0%} of a frame's time now" if self.late is not None else "no frame is sent now"
        return f"what this process paces: its frames came late (95th percentile: {now})"


def _within(bounds: tuple[float, float], value: float) -> float:
    return min(bounds[1], max(bounds[0], value))
