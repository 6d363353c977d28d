"""What comes over the orchestrator's connection: taken until it ends, acknowledged now and then; and events kept for it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.session.link import ACK_BYTES, ConnectionLost, EventLog
from tests.musetalk_agent.session.test_link_receiver_any_order import receiver, start
from tests.waiting import until

Message = MutableMapping[str, Any]


class Socket:
    """Gives these messages, then waits; `over` is set with the last one where the session ends by it."""

    def __init__(self, *messages: Message, over: bool = False) -> None:
        self.left, self.over, self._ends = list(messages), asyncio.Event(), over
        self.acknowledged: list[int] = []
        self.taken = 0

    async def receive(self) -> Message:
        if not self.left:
            await asyncio.Event().wait()
        self.taken += 1
        message = self.left.pop(0)
        if not self.left and self._ends:
            self.over.set()
        return message

    def acknowledge(self) -> None:
        self.acknowledged.append(self.taken)


def pcm(size: int) -> Message:
    return {"type": "websocket.receive", "bytes": bytes(size)}


def text(content: str) -> Message:
    return {"type": "websocket.receive", "text": content}


async def test_everything_is_taken_in_order_until_the_session_is_over() -> None:
    taken, heard, _ = receiver()
    socket = Socket(
        text(start(1)), pcm(4), {**pcm(2), "text": None}, text('{"type":"segment.end","segment":1}'), over=True
    )
    await taken.read(socket.receive, socket.over, socket.acknowledge)
    assert [call[0] for call in heard.calls] == ["end", "begin", "push", "push", "end"]
    assert (taken.items, taken.segments, socket.left) == (4, 1, [])


async def test_nothing_is_received_for_a_session_that_is_over() -> None:
    taken, heard, _ = receiver()
    socket = Socket(pcm(2))
    socket.over.set()
    await taken.read(socket.receive, socket.over, socket.acknowledge)
    assert socket.taken == 0 and heard.calls == []


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"type": "websocket.disconnect", "code": 1001}, "closed with 1001"),
        ({"type": "websocket.disconnect"}, "closed with 1006"),
    ],
)
async def test_a_connection_that_closes_keeps_what_came_before(message: Message, reason: str) -> None:
    taken, heard, _ = receiver()
    socket = Socket(pcm(2), message)
    with pytest.raises(ConnectionLost, match=reason):
        await taken.read(socket.receive, socket.over, socket.acknowledge)
    assert heard.calls == [("push", [0])] and taken.items == 1


async def test_a_socket_that_was_closed_before_is_a_lost_connection_too() -> None:
    taken, _, _ = receiver()

    async def receive() -> Message:
        raise RuntimeError('Cannot call "receive" once a disconnect message has been received.')

    with pytest.raises(ConnectionLost, match="once a disconnect"):
        await taken.read(receive, asyncio.Event(), lambda: None)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"type": "websocket.receive"}, "an empty WebSocket message"),
        (pcm(3), "PCM of 3 bytes is not whole int16 samples"),
        (text("{"), "not a link message"),
        (text('{"type":"segment.begin"}'), "not a link message"),
    ],
)
async def test_what_breaks_the_protocol_ends_the_reading_with_a_sentence(message: Message, sentence: str) -> None:
    taken, heard, _ = receiver()
    socket = Socket(message)
    with pytest.raises(ProblemError, match=sentence) as refused:
        await taken.read(socket.receive, socket.over, socket.acknowledge)
    assert refused.value.code is ErrorCode.INVALID_MESSAGE and heard.calls == [] and taken.items == 0


async def test_an_acknowledgement_is_due_whenever_so_much_has_come() -> None:
    """By blocks of 40 ms after the 13th, 26th and so on; a large one is acknowledged by itself."""
    block, taken = 1280, receiver()[0]
    each = -(-ACK_BYTES // block)
    socket = Socket(*[pcm(block)] * (2 * each + 1), pcm(ACK_BYTES), over=True)
    await taken.read(socket.receive, socket.over, socket.acknowledge)
    assert socket.acknowledged == [each, 2 * each, 2 * each + 2]


async def test_reading_that_is_cancelled_has_taken_whole_items_only() -> None:
    taken, heard, _ = receiver()
    socket = Socket(pcm(4), pcm(6))
    reading = asyncio.create_task(taken.read(socket.receive, socket.over, socket.acknowledge))
    await until(lambda: not socket.left)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert heard.calls == [("push", [0, 0]), ("push", [0, 0, 0])] and taken.items == 2


def event(number: int) -> m.Event:
    return m.PlaybackStarted(segment=number)


@given(st.integers(0, 1200), st.integers(0, 1300))
def test_events_are_numbered_from_one_and_the_last_ones_are_kept(count: int, seen: int) -> None:
    log = EventLog()
    assert not log.changed.is_set() and log.numbered == 0
    for number in range(1, count + 1):
        log.add(event(number))
    kept = log.after(seen)
    assert [each.id for each in kept] == list(range(max(seen, count - 512) + 1, count + 1))
    assert all(each.event == event(each.id) for each in kept)
    assert log.numbered == count and log.changed.is_set() == (count > 0)


def test_a_time_that_is_due_wakes_the_sender_and_has_no_number() -> None:
    log = EventLog()
    log.due.plays(1, 0.0, 5.0)
    assert log.changed.is_set() and log.numbered == 0 and log.after(0) == []
