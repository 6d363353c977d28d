"""Names of strangers: a name server that does not answer holds up nobody else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from musetalk_agent.protocol.addresses import NameResolver
from tests.waiting import NEVER_S, until


class Names:
    """A name server: `slow.example` does not answer before `answer` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()

    def getaddrinfo(self, host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        self.asked.append(host)
        if host.endswith(("slow.example", "slow.test")):
            self.answer.wait(NEVER_S)
        if host.startswith("gone"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        if host.startswith("odd"):
            raise UnicodeError("label too long")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))] * 2


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.answer.set()


async def until_idle(resolver: NameResolver) -> None:
    await until(lambda: not resolver.running)


async def test_addresses_come_once_each_and_failures_are_oserrors(names: Names) -> None:
    resolver = NameResolver()
    assert await resolver("good.example", 443) == ["192.0.2.1"]
    for host in ("gone.example", "odd.example"):
        with pytest.raises(OSError):
            await resolver(host, 443)
    await until_idle(resolver)


async def test_slow_names_hold_up_neither_other_names_nor_the_shared_threads(names: Names) -> None:
    resolver = NameResolver(within_s=NEVER_S)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    slow = [asyncio.create_task(resolver(f"a{n}.slow.example", 443)) for n in range(50)]
    await asyncio.sleep(0)
    async with asyncio.timeout(NEVER_S):
        assert await resolver("good.example", 443) == ["192.0.2.1"]
        assert await asyncio.to_thread(lambda: "free") == "free"
    for one in slow:
        one.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert sorted(names.asked) == ["a0.slow.example", "a1.slow.example", "good.example"]  # two for each domain
    assert resolver.running == 2
    names.answer.set()
    await until_idle(resolver)
    assert len(names.asked) == 3, "what nobody waits for any more is not looked up"


async def test_names_that_wait_for_slow_ones_have_the_same_deadline(names: Names) -> None:
    resolver = NameResolver(within_s=0.05)
    async with asyncio.timeout(NEVER_S):
        slow = (resolver(f"a{n}.slow.example", 443) for n in range(5))
        outcomes = await asyncio.gather(*slow, return_exceptions=True)
    assert [type(one) for one in outcomes] == [TimeoutError] * 5 and len(names.asked) <= 2
    names.answer.set()
    await until_idle(resolver)


async def test_one_name_is_looked_up_once_at_a_time_and_who_waits_gets_a_turn(names: Names) -> None:
    resolver = NameResolver(threads=2)
    same = [asyncio.create_task(resolver("a.slow.example", 443)) for _ in range(5)]
    other = asyncio.create_task(resolver("b.slow.example", 443))
    third = asyncio.create_task(resolver("c.slow.test", 443))
    await asyncio.sleep(0)
    same[0].cancel()
    await asyncio.sleep(0)
    names.answer.set()
    async with asyncio.timeout(NEVER_S):
        assert await asyncio.gather(*same[1:], other, third) == [["192.0.2.1"]] * 6
    assert sorted(names.asked) == ["a.slow.example", "b.slow.example", "c.slow.test"]


def test_a_look_up_that_hangs_survives_its_event_loop(names: Names) -> None:
    resolver = NameResolver(within_s=0.05)

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            await resolver("a.slow.example", 443)

    asyncio.run(ask())
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "resolver"] == [True]
    names.answer.set()

    async def again() -> list[str]:
        await until_idle(resolver)
        return await resolver("a.slow.example", 443)

    assert asyncio.run(again()) == ["192.0.2.1"]
