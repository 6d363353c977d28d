"""Events of a session reach its sender exactly once, whatever its connections do."""

from __future__ import annotations

from musetalk_agent.protocol.messages import Ack, Hello, Limits, PlaybackFinished, ServerMessage
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.session.event_outbox import KEPT_EVENTS, QUEUE_MESSAGES, ClientQueue, EventOutbox

HELLO = Hello(
    session_id="s",
    received_samples=0,
    sample_rate=16000,
    limits=Limits(message_bytes=1, backlog_s=1, bytes_per_s=1),
)


def outbox() -> EventOutbox:
    metrics = Metrics()
    return EventOutbox("s", metrics, EventBus(metrics))


def finish(box: EventOutbox, *segments: int) -> None:
    for segment in segments:
        box.publish(PlaybackFinished(segment=segment, position_s=1.0, interrupted=False))


async def drain(connection: ClientQueue) -> list[ServerMessage]:
    """Takes what is queued; asks once more at the end, as a writer whose sends succeeded does."""
    connection.close(1001)
    messages = []
    while (message := await connection.take()) is not None:
        messages.append(message)
    return messages


def segments(messages: list[ServerMessage]) -> list[int]:
    return [m.segment for m in messages if isinstance(m, PlaybackFinished)]


async def test_what_waits_for_a_dead_connection_goes_to_the_next() -> None:
    box = outbox()
    box.attach(HELLO)  # nothing takes from it
    finish(box, 1, 2)
    assert segments(await drain(box.attach(HELLO))) == [1, 2]


async def test_a_message_whose_send_failed_goes_to_the_next_connection() -> None:
    box = outbox()
    first = box.attach(HELLO)
    finish(box, 1, 2)
    assert await first.take() == HELLO
    assert segments([await first.take() or HELLO]) == [1]
    assert segments([await first.take() or HELLO]) == [2]  # asked for once 1 was sent; the send of 2 breaks
    box.detach(first)
    finish(box, 3)
    assert segments(await drain(box.attach(HELLO))) == [2, 3]
    assert segments(await drain(box.attach(HELLO))) == []


async def test_a_sender_that_names_the_last_event_gets_all_later_ones_again() -> None:
    box = outbox()
    first = box.attach(HELLO)
    finish(box, 1, 2, 3)
    ids = [m.id for m in await drain(first) if isinstance(m, PlaybackFinished)]
    assert ids == sorted(set(ids)) and None not in ids
    for seen, expected in ((0, [1, 2, 3]), (ids[0], [2, 3]), (ids[2], [])):
        again = await drain(box.attach(HELLO, seen))
        assert segments(again) == expected
        assert [m.type for m in again[:1]] == ["hello"] and not any(m.type == "warning" for m in again)


async def test_a_reader_that_was_cut_off_misses_nothing() -> None:
    box = outbox()
    slow = box.attach(HELLO)
    for number in range(QUEUE_MESSAGES + 2 - KEPT_EVENTS):
        slow.put(Ack(received_samples=number))
        slow.put(HELLO)
    finish(box, *range(1, KEPT_EVENTS + 1))
    assert slow.overrun
    assert segments(await drain(box.attach(HELLO))) == list(range(1, KEPT_EVENTS + 1))


async def test_events_that_are_gone_are_reported() -> None:
    box = outbox()
    finish(box, *range(1, KEPT_EVENTS + 2))
    assert box._metrics.events_dropped._value.get() == 1
    messages = await drain(box.attach(HELLO, 0))
    assert messages[1].type == "warning" and messages[1].code == "events_missed"
    assert segments(messages) == list(range(2, KEPT_EVENTS + 2))


async def test_what_happened_under_another_orchestrator_is_reported_as_missing() -> None:
    box = outbox()
    box.inherit()
    finish(box, 7)
    seen_there = 1_700_000_000_000
    messages = await drain(box.attach(HELLO, seen_there))
    assert [m.type for m in messages] == ["hello", "warning", "playback.finished"]
    event = messages[-1]
    assert isinstance(event, PlaybackFinished) and event.id is not None
    assert [m.type for m in await drain(box.attach(HELLO, event.id))] == ["hello"]
