from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest

from musetalk_agent.protocol.problems import ProblemError
from orchestrator import events
from orchestrator.events import EventBus, EventStream, SessionEvent
from orchestrator.metrics import Metrics
from tests.waiting import NEVER_S


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def made() -> tuple[EventBus, Metrics, Clock]:
    metrics, clock = Metrics(), Clock()
    return EventBus(metrics, clock), metrics, clock


def streams(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("avatar_event_streams")


async def drained(stream: EventStream) -> list[SessionEvent]:
    """What waits; the stream must be over."""
    taken = []
    async with asyncio.timeout(NEVER_S):
        while (event := await stream.take()) is not None:
            taken.append(event)
    return taken


def body(event: SessionEvent) -> dict[str, object]:
    return dict(json.loads(event.text))


async def test_a_stream_has_the_history_first_then_what_comes_and_ends_with_the_session() -> None:
    bus, metrics, clock = made()
    bus.publish("a", "session.state", {"state": "ready"})
    stream = bus.subscribe("a")
    bus.publish("b", "warning", {})
    clock.now += 1
    bus.publish("a", "playback.started", {"segment": 1})
    bus.publish("a", "session.state", {"state": "stopped", "reason": "idle"})
    taken = await drained(stream)
    assert [event.type for event in taken] == ["session.state", "playback.started", "session.state"]
    assert body(taken[1]) == {
        "id": taken[1].id,
        "session_id": "a",
        "type": "playback.started",
        "at": "1970-01-01T00:16:41.000Z",
        "data": {"segment": 1},
    }
    bus.unsubscribe("a", stream)
    assert streams(metrics) == 0
    assert [event.id for event in await drained(bus.subscribe("a"))] == [event.id for event in taken]


async def test_ids_rise_whatever_the_clock_does() -> None:
    bus, _, clock = made()
    for step in (0.0, 0.0, 5.0, -60.0, 0.0):
        clock.now += step
        bus.publish("a", "warning", {})
    bus.publish("a", "session.state", {"state": "failed"})
    ids = [event.id for event in await drained(bus.subscribe("a"))]
    assert all(one < other for one, other in pairwise(ids)) and ids[0] == 1_000_000


async def test_a_reader_resumes_where_it_was() -> None:
    bus, _, _ = made()
    for number in range(5):
        bus.publish("a", "warning", {"number": number})
    bus.publish("a", "session.state", {"state": "stopped"})
    everything = await drained(bus.subscribe("a"))
    rest = await drained(bus.subscribe("a", everything[2].id))
    assert rest == everything[3:]


async def test_a_gap_is_reported() -> None:
    bus, _, _ = made()
    bus.publish("a", "warning", {})
    first = bus.subscribe("a")
    seen = await first.take()
    assert seen is not None
    for _ in range(events.HISTORY):
        bus.publish("a", "warning", {})
    kept = bus.subscribe("a", seen.id)  # only the one it has seen is gone: nothing is missing
    event = await kept.take()
    assert event is not None and event.type == "warning"
    bus.publish("a", "warning", {})
    event = await bus.subscribe("a", seen.id).take()
    assert event is not None and (event.type, event.id) == ("overrun", 0)
    other, _, _ = made()  # another orchestrator, which has taken the session over
    event = await other.subscribe("a", seen.id).take()
    assert event is not None and event.type == "overrun"
    fresh = await bus.subscribe("a").take()
    assert fresh is not None and fresh.type == "warning"


async def test_a_slow_reader_is_cut_off_and_misses_nothing() -> None:
    bus, metrics, _ = made()
    slow, quick = bus.subscribe("a"), bus.subscribe("a")
    for number in range(events.HISTORY + 1):
        bus.publish("a", "warning", {"number": number})
        assert await quick.take() is not None
    taken = await drained(slow)
    assert len(taken) == events.HISTORY + 1 and taken[-1].type == "overrun"
    assert metrics.registry.get_sample_value("avatar_event_overruns_total") == 1
    assert streams(metrics) == 1
    bus.unsubscribe("a", slow)
    assert streams(metrics) == 1
    again = await bus.subscribe("a", taken[-2].id).take()
    assert again is not None and body(again)["data"] == {"number": events.HISTORY}


async def test_readers_and_histories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "STREAMS_PER_SESSION", 2)
    monkeypatch.setattr(events, "SESSIONS", 3)
    bus, metrics, _ = made()
    oldest = bus.subscribe("a")
    bus.subscribe("a")
    with pytest.raises(ProblemError) as caught:
        bus.subscribe("a")
    assert (caught.value.code, caught.value.limit) == ("quota_exceeded", 2)
    for session in "bcd":
        bus.publish(session, "warning", {})
    assert await drained(oldest) == [] and streams(metrics) == 0


async def test_taking_can_be_cancelled_and_loses_nothing() -> None:
    bus, _, _ = made()
    stream = bus.subscribe("a")
    taking = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    bus.publish("a", "warning", {})
    event = await stream.take()
    assert event is not None and event.type == "warning"


async def test_closing_ends_every_stream() -> None:
    bus, _, _ = made()
    stream = bus.subscribe("a")
    waiting = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    bus.close()
    assert await waiting is None
    assert await drained(bus.subscribe("a")) == []


async def test_no_secret_is_reported() -> None:
    bus, _, _ = made()
    heard: list[SessionEvent] = []
    bus.listen(heard.append)
    reported = "no push to rtmp://live.example/app/the-stream-key, ws://h/audio?token=123.abc failed"
    bus.publish("a", "warning", {"message": reported})
    assert "the-stream-key" not in heard[0].text and "123.abc" not in heard[0].text
    assert "live.example" in heard[0].text
