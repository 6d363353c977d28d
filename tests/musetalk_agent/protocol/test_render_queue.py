"""The queue of renders, on SQLite and on Redis: what is taken is nobody else's, and what the dead held waits again."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from musetalk_agent.protocol import render_queue
from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket
from tests.servers.redis import redis_server


@pytest.fixture(params=["sqlite", "redis"])
async def target(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "queue.db")
        return
    async with redis_server() as server:
        yield server.url


def tickets(count: int) -> list[RenderTicket]:
    return [RenderTicket(render_id=f"ren_{number:024x}", span=number or None) for number in range(count)]


def test_tickets_come_in_their_order_each_once(target: str) -> None:
    with RenderQueue(target) as queue:
        queue.put(*tickets(3))
        taken = [queue.take("one"), queue.take("two"), queue.take("one")]
        assert [each and each.ticket for each in taken] == tickets(3)
        assert queue.take("one") is None and queue.waiting() == 0


def test_what_is_done_does_not_come_again(target: str) -> None:
    with RenderQueue(target) as queue:
        queue.put(*tickets(2))
        first = queue.take("one")
        assert first is not None and queue.take("one") is not None
        queue.done("one", first)
        assert queue.give_back("one") == 1
        again = queue.take("two")
        assert again is not None and again.ticket == tickets(2)[1]


def test_the_dead_lose_what_they_hold_and_the_living_do_not(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RenderQueue(target) as queue:
        queue.put(*tickets(2))
        queue.alive("living")
        assert queue.take("living") is not None and queue.take("silent") is not None
        assert queue.give_back_of_the_dead() == 1
        assert queue.waiting() == 1
        monkeypatch.setattr(render_queue, "SILENT_S", 0.0)
        assert queue.give_back_of_the_dead() == 1
        assert queue.waiting() == 2


def test_two_processes_never_take_the_same(target: str) -> None:
    taken: list[str] = []

    def work(name: str) -> None:
        with RenderQueue(target) as queue:
            while (each := queue.take(name)) is not None:
                taken.append(each.ticket.render_id)

    with RenderQueue(target) as queue:
        queue.put(*tickets(40))
        threads = [threading.Thread(target=work, args=(f"worker{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert queue.waiting() == 0
    assert sorted(taken) == [each.render_id for each in tickets(40)]


def test_a_ticket_that_cannot_be_read_is_dropped(target: str) -> None:
    with RenderQueue(target) as queue:
        queue._broker.write("waiting", '{"render_id": "../etc"}')
        queue.put(*tickets(1))
        taken = queue.take("one")
        assert taken is not None and taken.ticket == tickets(1)[0]
        queue.done("one", taken)
        assert queue.give_back("one") == 0
