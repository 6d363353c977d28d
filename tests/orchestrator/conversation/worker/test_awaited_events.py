"""Only what is waited for wakes a loop; nothing that is waited for is lost."""

from __future__ import annotations

import asyncio
import threading

import pytest
from livekit.rtc._proto.ffi_pb2 import FfiEvent

from orchestrator.conversation.worker import awaited_events
from orchestrator.conversation.worker.awaited_events import BEHIND_MOST, AwaitedEvents
from tests.waiting import turns, until


async def test_a_stream_gets_its_own_events_only() -> None:
    events: AwaitedEvents[int] = AwaitedEvents()
    even, odd = events.subscribe(), events.subscribe()
    first = asyncio.create_task(even.wait_for(lambda n: n % 2 == 0))
    second = asyncio.create_task(odd.wait_for(lambda n: n % 2 == 1))
    await turns()
    for number in (1, 3, 4):
        events.put(number)
    assert (await first, await second) == (4, 1)
    await turns()
    assert even.empty()  # 1 and 3 never came
    assert odd.get_nowait() == 3  # it came before the wait was over


async def test_events_between_two_waits_are_kept() -> None:
    events: AwaitedEvents[int] = AwaitedEvents()
    queue = events.subscribe()
    for number in (1, 2):
        events.put(number)
    await turns()
    assert await queue.wait_for(lambda n: n == 2) == 2


async def test_the_filter_of_a_subscription_holds_without_a_wait() -> None:
    events: AwaitedEvents[int] = AwaitedEvents()
    queue = events.subscribe(filter_fn=lambda n: n > 5)
    for number in (5, 6):
        events.put(number)
    await turns()
    assert [queue.get_nowait(), queue.empty()] == [6, True]


async def test_a_wait_that_is_cancelled_leaves_everything_to_the_next_reader() -> None:
    events: AwaitedEvents[int] = AwaitedEvents()
    queue = events.subscribe()
    waiting = asyncio.create_task(queue.wait_for(lambda n: n == 7))
    await turns()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    events.put(1)
    await turns()
    assert queue.get_nowait() == 1


async def test_none_comes_after_the_end_of_a_subscription() -> None:
    events: AwaitedEvents[int] = AwaitedEvents()
    queue = events.subscribe()
    events.unsubscribe(queue)
    events.unsubscribe(queue)
    events.put(1)
    await turns()
    assert queue.empty()


async def test_threads_may_put() -> None:
    events: AwaitedEvents[int] = AwaitedEvents()
    queue = events.subscribe()
    taken: list[int] = []

    async def take() -> None:
        while len(taken) < 200:
            taken.append(await queue.wait_for(lambda n: n >= 0))

    def put(base: int) -> None:
        for number in range(100):
            events.put(base + number)
            events.put(-1)

    reading = asyncio.create_task(take())
    threads = [threading.Thread(target=put, args=(base,)) for base in (0, 100)]
    for thread in threads:
        thread.start()
    await until(lambda: reading.done())
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(200))


async def test_what_may_be_dropped_is_dropped_while_the_loop_is_behind_and_the_rest_is_kept() -> None:
    gone: list[int] = []

    def drop(number: int) -> bool:
        if number % 2:
            gone.append(number)
        return number % 2 == 1

    events = AwaitedEvents[int](drop)
    queue, other = events.subscribe(filter_fn=lambda n: n < 1000), events.subscribe(filter_fn=lambda n: n >= 1000)
    for number in range(BEHIND_MOST + 4):  # the loop does not run meanwhile
        events.put(number)
    events.put(1001)
    assert gone == [BEHIND_MOST + 1, BEHIND_MOST + 3] and events.dropped == 2
    await turns()
    kept = [queue.get_nowait() for _ in range(queue.qsize())]
    assert kept == [*range(BEHIND_MOST + 1), BEHIND_MOST + 2], "what is no sound is never dropped"
    assert other.get_nowait() == 1001, "another stream is not behind"
    events.put(7)
    await turns()
    assert queue.get_nowait() == 7 and events.dropped == 2, "it has caught up"


def test_of_the_sdks_events_only_sound_is_dropped_and_its_buffer_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []

    class Handle:
        def __init__(self, number: int) -> None:
            self.number = number

        def dispose(self) -> None:
            freed.append(self.number)

    monkeypatch.setattr(awaited_events, "FfiHandle", Handle)
    sound, end, other = FfiEvent(), FfiEvent(), FfiEvent()
    sound.audio_stream_event.frame_received.frame.handle.id = 5
    end.audio_stream_event.eos.SetInParent()
    other.room_event.room_handle = 1
    assert [awaited_events._drop_sound(event) for event in (sound, end, other)] == [True, False, False]
    assert freed == [5]


async def test_a_loop_that_is_closed_stops_nobody_else() -> None:
    events: AwaitedEvents[int] = AwaitedEvents()
    gone = asyncio.new_event_loop()
    events.subscribe(gone)
    gone.close()
    queue = events.subscribe()
    events.put(1)
    await turns()
    assert queue.get_nowait() == 1
