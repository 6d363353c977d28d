"""The least of the four rules, what a refusal says, and what service corrects; the machine and its clock are fakes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from musetalk_agent.admission.admission import LOOK_S, Admission, Running, Scene
from musetalk_agent.admission.costs import Demand
from musetalk_agent.admission.machine import Memory
from musetalk_agent.admission.terms import LATE_LOOKS, WELL_LOOKS
from musetalk_agent.card_estimates import PACED_MOST
from musetalk_agent.clock import VirtualClock
from musetalk_agent.errors import AtCapacity, SessionEnded, SessionNotFound
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.http import CapacityLimit
from musetalk_agent.service import live_sessions
from musetalk_agent.service.live_sessions import LiveSessions
from tests.musetalk_agent.admission.granted import Granted
from tests.musetalk_agent.service.test_admission_any_order import Held, Shop, request
from tests.waiting import turns

MIB = 1 << 20
SMALL = Demand("pattern", 512, 512)
MUCH = Memory(limit=64 << 30, free=60 << 30, own=1)


def made(setting: int | None = None, cores: float = 64.0, memory: Memory | None = MUCH) -> tuple[Admission, Granted]:
    machine = Granted(cores, memory)
    return Admission(setting, machine, VirtualClock(), lambda: 1.0), machine


@pytest.mark.parametrize(
    ("cores", "memory", "card", "limited_by", "most"),
    [
        (64.0, MUCH, 3, "card", 3),
        (64.0, MUCH, 0, "card", 0),
        (1.0, MUCH, 8, "processor", 4),
        (64.0, Memory(limit=64 << 30, free=(512 + 100) * MIB, own=1), 8, "memory", 3),
        (64.0, None, None, "pacing", PACED_MOST),
    ],
)
def test_the_least_rules(cores: float, memory: Memory | None, card: int | None, limited_by: str, most: int) -> None:
    admission, _ = made(None, cores, memory)
    limits = admission.limits([], SMALL, card)
    assert (limits.limited_by, limits.most) == (limited_by, most)
    assert limits.by[CapacityLimit.CARD] == card and limits.by[CapacityLimit.SETTING] is None
    assert (limits.by[CapacityLimit.MEMORY] is None) == (memory is None)


def test_what_the_deployer_says_takes_the_place_of_all_but_the_card() -> None:
    admission, _ = made(12, cores=0.5, memory=Memory(limit=MIB, free=0, own=1))
    assert admission.limits([], SMALL, None).most == 12
    assert admission.limits([], SMALL, None).by[CapacityLimit.PROCESSOR] == 2, "it is reported all the same"
    assert (admission.limits([], SMALL, 4).most, admission.limits([], SMALL, 4).limited_by) == (4, "card")
    assert admission.limits([], SMALL, 12).limited_by == "setting", "of two that say the same the first is named"


async def test_a_slow_machine_is_measured_at_the_start_unless_the_deployer_said_how_many() -> None:
    admission = Admission(None, Granted(2.0), VirtualClock(), lambda: 4.0)
    assert admission.limits([], SMALL, None).most == 9
    await admission.measure()
    limits = admission.limits([], SMALL, None)
    assert (limits.by[CapacityLimit.PROCESSOR], limits.by[CapacityLimit.PACING]) == (2, PACED_MOST // 4)

    def never() -> float:
        raise AssertionError("it is of no use")

    await Admission(3, Granted(2.0), VirtualClock(), never).measure()


class Stage:
    """Sessions that use so many cores each, and are looked at every `LOOK_S`."""

    def __init__(self, cores: float = 2.0) -> None:
        self.machine, self.clock = Granted(cores, MUCH), VirtualClock()
        self.admission = Admission(None, self.machine, self.clock, lambda: 1.0)
        self.sessions: dict[str, Demand] = {}
        self.starting: list[Demand] = []
        self.each, self.late, self.spoken = SMALL.cores, 0.0, 0

    async def looks(self, count: int) -> None:
        for _ in range(count):
            await self.clock.run(self.clock.now() + LOOK_S)
            self.machine.used_s += LOOK_S * self.each * len(self.sessions)
            self.spoken += round(25 * LOOK_S)
            running = [Running(name, demand, self.spoken, [self.late] * 250) for name, demand in self.sessions.items()]
            self.admission.look(Scene(running, self.starting))

    def most(self) -> int:
        return self.admission.limits([*self.sessions.values(), *self.starting], SMALL, None).most


async def test_sessions_that_cost_as_much_as_was_thought_change_nothing() -> None:
    stage = Stage()
    stage.sessions = dict.fromkeys("abcd", SMALL)
    seen = []
    for number in range(60):  # a little more, a little less
        stage.each = SMALL.cores * (1.05 if number % 2 else 0.95)
        await stage.looks(1)
        seen.append(stage.most())
    assert set(seen) == {9}


async def test_sessions_that_cost_twice_shut_the_door_and_none_is_put_out() -> None:
    stage = Stage()
    stage.sessions = dict.fromkeys("abcdef", SMALL)
    stage.each = 2 * SMALL.cores
    await stage.looks(20)
    assert stage.most() < 6 and len(stage.sessions) == 6
    stage.each = SMALL.cores
    await stage.looks(30)
    assert stage.most() >= 8, "and it opens again"


async def test_a_start_under_way_teaches_nothing_of_what_sessions_cost() -> None:
    stage = Stage()
    stage.sessions, stage.starting = dict.fromkeys("ab", SMALL), [SMALL]
    stage.each = 50 * SMALL.cores  # an avatar is prepared meanwhile
    await stage.looks(20)
    assert stage.most() == 9
    stage.starting, stage.sessions = [], dict.fromkeys("abc", SMALL)
    await stage.looks(1)
    assert stage.most() == 9, "nor does the look in which it ended"


async def test_late_frames_are_the_pacing_and_time_without_them_heals() -> None:
    stage = Stage(cores=64.0)
    stage.sessions = dict.fromkeys("abcde", SMALL)
    stage.late = 0.9
    await stage.looks(LATE_LOOKS)
    limits = stage.admission.limits(list(stage.sessions.values()), SMALL, None)
    assert (limits.most, limits.limited_by) == (4, "pacing") and stage.admission.late == 0.9
    stage.late = 0.0
    await stage.looks(WELL_LOOKS)
    assert stage.most() == 5 and stage.admission.late == 0.0


async def test_it_looks_as_long_as_it_runs() -> None:
    clock, scenes = VirtualClock(), []
    admission = Admission(None, Granted(), clock, lambda: 1.0)

    def scene() -> Scene:
        scenes.append(clock.now())
        return Scene([], [])

    task = asyncio.create_task(admission.run(scene))
    await clock.run(3 * LOOK_S)
    assert scenes == [0.0, LOOK_S, 2 * LOOK_S, 3 * LOOK_S]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (Granted(0.3, MUCH), r"holds 1 of 1 sessions, and what limits it is its processor: 0\.3 cores, 0\.\d\d of one"),
        (
            Granted(64, Memory(1 << 30, 300 * MIB, 1)),
            r"is its memory: 300 MiB free, of which 256 are kept back, 56 for",
        ),
    ],
)
async def test_a_refusal_names_its_limit_and_the_value(machine: Granted, says: str) -> None:
    shop = Shop(None, {"warp": None})
    sessions = LiveSessions(cast(Factory, shop), admission=Admission(None, machine, VirtualClock(), lambda: 1.0))
    first = asyncio.create_task(sessions.start(request("a", "warp")))
    await turns(3)
    shop.preparing["a"].set_result(None)
    held = cast(Held, await first)
    with pytest.raises(AtCapacity, match=says) as refused:
        await sessions.start(request("b", "warp"))
    assert (refused.value.limit, refused.value.retry_after_s) == (1, 5)
    capacity = sessions.capacity()
    assert (capacity.sessions, capacity.limited_by in ("processor", "memory")) == (1, True)
    held.over(held.state.STOPPED)
    assert sessions.capacity().sessions == 0
    await sessions.aclose()


async def test_a_session_that_was_over_long_ago_is_not_known_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(None, {"warp": None})
    admission = Admission(None, Granted(2.0, MUCH), VirtualClock(), lambda: 1.0)
    sessions = LiveSessions(cast(Factory, shop), admission=admission)
    for name in "ab":
        starting = asyncio.create_task(sessions.start(request(name, "warp")))
        await turns(3)
        shop.preparing[name].set_result(None)
        held = cast(Held, await starting)
        held.over(held.state.STOPPED)
    for name in "ab":
        with pytest.raises(SessionEnded):
            sessions.get(name)
    monkeypatch.setattr(live_sessions, "REMEMBER_S", -1.0)
    for name in "ab":
        with pytest.raises(SessionNotFound):
            sessions.get(name)
    await sessions.aclose()


async def test_what_sessions_do_is_seen_and_their_lateness_is_read_once() -> None:
    clock, machine = VirtualClock(), Granted(2.0, MUCH)
    shop = Shop(None, {"warp": None})
    sessions = LiveSessions(cast(Factory, shop), admission=Admission(None, machine, clock, lambda: 1.0))
    starts = [asyncio.create_task(sessions.start(request(name, "warp"))) for name in "ab"]
    await turns(3)
    watching = asyncio.create_task(sessions.watch())
    for gate in list(shop.preparing.values()):
        gate.set_result(None)
    held = [cast(Held, one) for one in await asyncio.gather(*starts)]
    statistics = [cast(SimpleNamespace, one.pipeline).player.statistics for one in held]
    for _ in range(LATE_LOOKS):
        statistics[0].clock_late.extend([0.9] * 90)
        await clock.run(clock.now() + LOOK_S)
        assert not statistics[0].clock_late
    assert sessions.capacity().pacing == 1
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await sessions.aclose()
