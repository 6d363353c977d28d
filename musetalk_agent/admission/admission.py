"""How many sessions this agent takes: the least of card, processor, memory and pacing, or what its deployer set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from musetalk_agent.admission.costs import Demand
from musetalk_agent.admission.machine import Host, slowness
from musetalk_agent.admission.terms import MemoryTerm, Pacing, Processor, SessionLoad
from musetalk_agent.clock import Clock
from musetalk_agent.protocol.http import CapacityLimit
from musetalk_agent.tasks import in_thread

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Between two looks at what the sessions use."""


@dataclass(frozen=True, slots=True)
class Running:
    """Measurements of one session: spoken frames since it began, the lateness of each frame since the last look in frame durations,
    and whether a viewer gets them."""

    session_id: str
    demand: Demand
    spoken: int
    late: Sequence[float]
    watched: bool = True


@dataclass(frozen=True, slots=True)
class Scene:
    """All sessions at a moment; `starting` are those that are not in their rooms yet."""

    running: Sequence[Running]
    starting: Sequence[Demand]


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Sessions in all by each limit; None where it sets none."""

    by: dict[CapacityLimit, int | None]
    most: int
    limited_by: CapacityLimit


class Admission:
    """Asked before each start. `measure` is called once, and `run` looks at the sessions from then on.

    Args:
        setting: what the deployer says; processor, memory and pacing are then reported and do not limit.
        machine: what the system grants.
        clock: of the looks.
        slow: see `slowness`.
    """

    def __init__(self, setting: int | None, machine: Host, clock: Clock, slow: Callable[[], float] = slowness) -> None:
        self._setting, self._machine, self._clock, self._slow = setting, machine, clock, slow
        self._processor, self._memory, self._pacing = Processor(machine.cores()), MemoryTerm(), Pacing()
        self._memory.observe(machine.memory(), ())
        self._before: tuple[float, float, dict[str, int], bool] | None = None

    @property
    def late(self) -> float:
        """The 95th percentile of the frames' lateness at the last look, by the time of a frame."""
        return self._pacing.late or 0.0

    async def measure(self) -> None:
        """Measures the processor, unless a setting makes that useless. Cancelling leaves the figures as they were."""
        if self._setting is None:
            factor = await in_thread(self._slow, "processor-speed")
            self._processor.started(factor)
            self._pacing.started(factor)
            log.info("the processor was measured", extra={"cores": self._processor.cores, "slowness": round(factor, 2)})

    async def run(self, scene: Callable[[], Scene]) -> None:
        """Looks until cancelled. Raises what `scene` raises."""
        while True:
            self.look(scene())
            await self._clock.sleep_until(self._clock.now() + LOOK_S)

    def look(self, scene: Scene) -> None:
        """Corrects the terms by what was used since the last look."""
        now, used = self._clock.now(), self._machine.cpu_s()
        spoken = {one.session_id: one.spoken for one in scene.running}
        before, self._before = self._before, (now, used, spoken, bool(scene.starting))
        held = [*(one.demand for one in scene.running), *scene.starting]
        self._memory.observe(self._machine.memory(), held)
        self._pacing.observe([late for one in scene.running for late in one.late], len(scene.running))
        if before is None:
            return
        at, used_before, spoken_before, was_starting = before
        steady = spoken_before.keys() == spoken.keys() and not scene.starting and not was_starting
        if steady and now > at:
            looks = [
                SessionLoad(
                    one.demand,
                    min(1.0, (one.spoken - spoken_before[one.session_id]) / (one.demand.fps * (now - at))),
                    one.watched,
                )
                for one in scene.running
            ]
            self._processor.observe((used - used_before) / (now - at), looks)

    def limits(self, held: Sequence[Demand], more: Demand, card: int | None) -> SessionLimits:
        """With these sessions there, for one like `more`. `card`: what the engine's device holds, None where it sets no limit."""
        by = {
            CapacityLimit.SETTING: self._setting,
            CapacityLimit.CARD: card,
            CapacityLimit.PROCESSOR: self._processor.holds(held, more),
            CapacityLimit.MEMORY: self._memory.holds(more),
            CapacityLimit.PACING: self._pacing.limit,
        }
        rule = (CapacityLimit.SETTING, CapacityLimit.CARD) if self._setting is not None else tuple(CapacityLimit)
        ruling = {limit: most for limit in rule if (most := by[limit]) is not None}
        least = min(ruling, key=ruling.__getitem__)
        return SessionLimits(by, ruling[least], least)

    def why(self, limit: CapacityLimit, more: Demand) -> str:
        """For people: what the limit is, and where its number comes from."""
        match limit:
            case CapacityLimit.PROCESSOR:
                return self._processor.why(more)
            case CapacityLimit.MEMORY:
                return self._memory.why(more)
            case CapacityLimit.PACING:
                return self._pacing.why()
            case CapacityLimit.CARD:
                return "the speed of its card"
            case CapacityLimit.SETTING:
                return "AGENT_MAX_SESSIONS"
