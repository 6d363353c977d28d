"""Event history and streams under any order of publishing, reading, leaving and closing, against a plain model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import events
from orchestrator.events import HISTORY, OVERRUN, STATE, EventBus, EventStream, SessionEvent
from orchestrator.metrics import Metrics
from tests.waiting import NEVER_S

IDS = ("a", "b")
_session = st.sampled_from(IDS)
_reader = st.integers(0, 5)
_ACTS = st.one_of(
    st.tuples(st.just("publish"), _session, st.sampled_from(["warning", "ready", "stopped"])),
    st.tuples(st.just("flood"), _session, st.integers(HISTORY - 2, HISTORY + 2)),
    st.tuples(st.just("subscribe"), _session, st.sampled_from(["start", "last seen", "unknown"])),
    st.tuples(st.just("read"), _reader, st.integers(1, HISTORY)),
    st.tuples(st.just("leave"), _reader, st.just(0)),
    st.tuples(st.just("close"), st.just(0), st.just(0)),
)


@dataclass
class Reader:
    """A stream, what it has read, and what it must read after that."""

    session: str
    stream: EventStream
    due: list[int]
    seen: list[SessionEvent] = field(default_factory=list)
    cut: bool = False

    async def read(self, most: int) -> None:
        """What waits, without waiting for more."""
        for _ in range(most):
            if not self.stream._waiting:
                return
            event = await self.stream.take()
            assert event is not None
            self.seen.append(event)


class World:
    """The bus, and a model of it: every event of each session, and who has to get which."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.now = 1000.0
        self.bus = EventBus(self.metrics, lambda: self.now)
        self.all: dict[str, list[SessionEvent]] = {each: [] for each in IDS}
        self.bus.listen(lambda event: self.all[event.session_id].append(event))
        self.over = dict.fromkeys(IDS, False)
        self.readers: list[Reader] = []
        self.closed = False

    def publish(self, session: str, what: str) -> None:
        state = what != "warning"
        self.bus.publish(session, STATE if state else what, {"state": what} if state else {})
        if state:
            self.over[session] = what == "stopped"
        for reader in self.readers:
            if reader.session == session and not reader.cut:
                reader.due.append(self.all[session][-1].id)
                waiting = len(reader.stream._waiting)
                reader.cut = waiting > HISTORY and reader.stream._waiting[-1].type == OVERRUN
                if reader.cut:
                    reader.due.pop()

    def subscribe(self, session: str, where: str) -> None:
        known = [event.id for event in self.all[session]]
        after = {"start": 0, "unknown": 999, "last seen": known[len(known) // 2] if known else 0}[where]
        stream = self.bus.subscribe(session, after)
        kept = [event.id for event in self.all[session][-HISTORY:] if event.id > after]
        missing = after != 0 and after not in [0, *known[-HISTORY - 1 :]]
        self.readers.append(Reader(session, stream, ([0] if missing else []) + kept))
        assert stream.ended == (self.over[session] or self.closed)

    def close(self) -> None:
        self.bus.close()
        self.closed = True


@settings(max_examples=200, deadline=None)
@given(acts=st.lists(_ACTS, max_size=25))
def test_every_reader_gets_every_event_once_and_in_order_or_is_warned(acts: list[tuple[str, object, object]]) -> None:
    async def played() -> None:
        world = World()
        for act, who, what in acts:
            world.now += 0.0004
            if act == "publish":
                world.publish(str(who), str(what))
            elif act == "flood":
                for _ in range(int(str(what))):
                    world.publish(str(who), "warning")
            elif act == "subscribe":
                world.subscribe(str(who), str(what))
            elif act == "close":
                world.close()
            elif world.readers:
                reader = world.readers[int(str(who)) % len(world.readers)]
                if act == "read":
                    await reader.read(int(str(what)))
                else:
                    world.bus.unsubscribe(reader.session, reader.stream)
                    world.bus.unsubscribe(reader.session, reader.stream)
                    world.readers.remove(reader)
        for session in IDS:
            ids = [event.id for event in world.all[session]]
            assert ids == sorted(set(ids)), "ids rise"
        for reader in world.readers:
            await reader.read(10 * HISTORY)
            got = [event.id for event in reader.seen]
            assert got == [*reader.due, 0] if reader.cut else got == reader.due
            assert all(json.loads(event.text).get("id", 0) == event.id for event in reader.seen)
            if reader.cut or world.over[reader.session] or world.closed:
                async with asyncio.timeout(NEVER_S):
                    assert await reader.stream.take() is None, "it is over, and says so"
        open_ = sum(not reader.cut for reader in world.readers)
        assert world.metrics.registry.get_sample_value("avatar_event_streams") == open_

    asyncio.run(played())


async def test_a_stream_that_was_closed_stays_closed_whatever_happens_then() -> None:
    """Sessions are handed over after the streams were closed: their readers must not hold up the end of the service."""
    bus = EventBus(Metrics())
    stream = bus.subscribe("a")
    bus.close()
    bus.publish("a", "warning", {})
    assert (await stream.take()) is not None
    async with asyncio.timeout(NEVER_S):
        assert await stream.take() is None


async def test_what_is_reported_after_the_end_of_a_session_does_not_begin_it_again() -> None:
    bus = EventBus(Metrics())
    bus.publish("a", STATE, {"state": "failed"})
    bus.publish("a", "error", {"code": "internal_error"})
    late = bus.subscribe("a")
    assert [event.type for event in (await late.take(), await late.take()) if event] == [STATE, "error"]
    async with asyncio.timeout(NEVER_S):
        assert await late.take() is None


def test_histories_are_bounded_and_the_quietest_goes() -> None:
    metrics = Metrics()
    bus = EventBus(metrics)
    streams = {name: bus.subscribe(name) for name in ("first", "second")}
    bus.publish("first", "warning", {})
    for number in range(events.SESSIONS - 1):
        bus.publish(str(number), "warning", {})
    assert streams["second"].ended and not streams["first"].ended
    assert metrics.registry.get_sample_value("avatar_event_streams") == 1
