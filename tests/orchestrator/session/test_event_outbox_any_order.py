"""What a session sends over connections that come, break, are replaced and read slowly: no event is lost or doubled."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.messages import Ack, EventMessage, Pong, WarningEvent
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.session import event_outbox as tested
from orchestrator.session.event_outbox import ClientQueue, EventOutbox

_ACTS = st.one_of(
    st.tuples(st.just("emit"), st.integers(1, 3)),
    st.tuples(st.just("ack"), st.integers(1, 3)),
    st.tuples(st.just("read"), st.integers(1, 8)),
    st.tuples(st.just("connect"), st.just(0)),
    st.tuples(st.just("resume"), st.just(0)),
    st.tuples(st.just("break"), st.just(0)),
)


class Client:
    """One sender over all its connections: what it has read."""

    def __init__(self) -> None:
        self.connection: ClientQueue | None = None
        self.events: list[int] = []
        self.acks: list[int] = []
        self.in_hand = False

    async def read(self, most: int) -> None:
        """What is queued, without waiting for more; the last message is written, and the next is not asked for yet."""
        assert self.connection is not None
        for _ in range(most):
            if not self.connection.waiting:
                return
            message = await self.connection.take()
            if isinstance(message, EventMessage) and message.id is not None:
                self.events.append(message.id)
            elif isinstance(message, Ack):
                self.acks.append(message.received_samples)

    async def ask(self) -> None:
        """Its socket took everything, and it waits for more."""
        assert self.connection is not None
        asking = asyncio.create_task(self.connection.take())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})


@settings(max_examples=300, deadline=None)
@given(acts=st.lists(_ACTS, max_size=40))
def test_a_client_that_names_what_it_saw_gets_each_event_once_and_one_that_does_not_loses_none(
    acts: list[tuple[str, int]],
) -> None:
    async def played() -> None:
        box = EventOutbox("s", Metrics(), EventBus(Metrics()))
        client, reported, samples = Client(), list[int](), 0
        for act, count in acts:
            if act == "emit":
                for _ in range(count):
                    box.publish(WarningEvent(code="c", message="m"))
                    reported.append(box._history[-1][1].id or 0)
            elif act == "ack":
                samples += count
                box.put(Ack(received_samples=samples))
            elif act in ("connect", "resume"):
                seen = max(client.events, default=0) if act == "resume" else None
                client.connection = box.attach(Pong(), seen)
                fresh = await client.connection.take()
                assert fresh == Pong(), "the greeting comes first"
                if seen is not None:
                    waiting = [m.id for m in client.connection._queue if isinstance(m, EventMessage) and m.id]
                    assert waiting == [id for id in reported if id > seen], "each later event, and none twice"
            elif client.connection is not None and act == "read":
                await client.read(count)
            elif client.connection is not None and act == "break":
                box.detach(client.connection)
                box.detach(client.connection)
                client.connection = None
        client.connection = box.attach(Pong(), None)
        await client.read(10_000)
        await client.ask()
        assert sorted(set(client.events)) == reported, "no event is lost"
        assert client.acks == sorted(client.acks)
        assert box.waiting == 0
        again = box.attach(Pong(), None)
        assert again.waiting == 1, "what a socket took does not come again"

    asyncio.run(played())


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 3 * tested.KEPT_EVENTS), seen_at=st.integers(0, 3 * tested.KEPT_EVENTS))
def test_what_is_no_longer_kept_is_said_to_be_missing(count: int, seen_at: int) -> None:
    box, reported = EventOutbox("s", Metrics(), EventBus(Metrics())), list[int]()
    for _ in range(count):
        box.publish(WarningEvent(code="c", message="m"))
        reported.append(box._history[-1][1].id or 0)
    seen = reported[min(seen_at, count - 1)] if reported else 1
    queued = list(box.attach(Pong(), seen)._queue)[1:]
    warned = bool(queued) and isinstance(queued[0], WarningEvent) and queued[0].code == "events_missed"
    rest = [m.id for m in queued[warned:] if isinstance(m, EventMessage)]
    later = [id for id in reported if id > seen]
    assert rest == later[-tested.KEPT_EVENTS :]
    assert warned == (len(rest) < len(later))


@settings(max_examples=30, deadline=None)
@given(more=st.integers(1, 50), acks=st.booleans())
def test_a_reader_that_falls_behind_is_closed_and_acks_alone_never_close_it(more: int, acks: bool) -> None:
    connection = ClientQueue()
    for number in range(tested.QUEUE_MESSAGES + more):
        connection.put(Ack(received_samples=number) if acks else Pong())
    assert connection.overrun is not acks and connection.closing is not acks
    assert connection.waiting == (1 if acks else 0)
