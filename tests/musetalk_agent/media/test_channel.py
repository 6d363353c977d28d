"""The bounded queue between two stages: nothing is lost, doubled or out of order, whatever waits, leaves or is cancelled."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.media.renderer import Channel
from musetalk_agent.protocol import messages as m
from musetalk_agent.session.link import EventLog

ACTS = st.lists(st.sampled_from(["put", "put", "put", "get", "pop", "leave", "discard odd", "discard"]), max_size=60)


async def turns() -> None:
    """Lets every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


@given(ACTS, st.integers(1, 4))
async def test_items_pass_in_order_and_a_producer_that_leaves_takes_its_item_with_it(
    acts: list[str], capacity: int
) -> None:
    channel: Channel[int] = Channel(capacity)
    producers: list[tuple[int, asyncio.Task[None]]] = []
    inside: list[int] = []
    waiting: list[int] = []
    for number, act in enumerate(acts):
        if act == "put":
            producers.append((number, asyncio.create_task(channel.put(number))))
            waiting.append(number)
        elif act == "leave" and waiting:
            left = waiting.pop(0)
            task = next(task for one, task in producers if one == left)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif act == "get" and inside:
            assert await channel.get() == inside.pop(0)
        elif act == "pop" and inside:
            assert channel.peek() == inside[0] and channel.pop() == inside.pop(0)
        elif act.startswith("discard"):
            odd = act == "discard odd"
            gone = [one for one in inside if one % 2 or not odd]
            assert channel.discard((lambda one: bool(one % 2)) if odd else (lambda _: True)) == len(gone)
            inside = [one for one in inside if one not in gone]
        await turns()
        came = [one for one, task in producers if one in waiting and task.done()]
        waiting = [one for one in waiting if one not in came]
        assert len(inside) + len(came) == len(channel) <= capacity
        assert sorted(channel.items()[len(inside) :]) == sorted(came) and list(channel.items()[: len(inside)]) == inside
        inside = list(channel.items())
        assert not waiting or channel.full  # no one waits while there is room
    for _, task in producers:
        task.cancel()
    await asyncio.gather(*(task for _, task in producers), return_exceptions=True)


async def test_a_consumer_that_waits_gets_the_next_item_and_one_that_leaves_loses_none() -> None:
    channel: Channel[str] = Channel(2)
    consumer = asyncio.create_task(channel.get())
    await turns()
    consumer.cancel()
    await asyncio.gather(consumer, return_exceptions=True)
    await channel.put("a")
    consumer = asyncio.create_task(channel.get())
    await turns()
    assert consumer.result() == "a"
    assert len(channel) == 0 and not channel.full
    assert channel.peek() is None
    with pytest.raises(IndexError):
        channel.pop()


@given(st.integers(0, 1200), st.integers(-5, 1300))
def test_the_outbox_keeps_the_newest_events_and_numbers_each_once(count: int, seen: int) -> None:
    outbox = EventLog()
    for number in range(count):
        outbox.add(m.PlaybackStarted(segment=number))
    events = outbox.after(seen)
    assert outbox.numbered == count
    assert [one.id for one in events] == list(range(max(seen, count - 512, 0) + 1, count + 1))
    assert all(one.event == m.PlaybackStarted(segment=one.id - 1) for one in events)
    assert outbox.changed.is_set() == (count > 0)
