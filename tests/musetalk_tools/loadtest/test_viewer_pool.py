"""The viewers' processes from outside: real processes that speak the real lines, but look at nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from musetalk_tools.loadtest import viewer_pool as pool_module
from musetalk_tools.loadtest.viewer_messages import (
    Joined,
    JoinViewer,
    LeaveViewer,
    Left,
    Link,
    Seen,
    line,
    viewer_commands,
    viewer_reports,
)
from musetalk_tools.loadtest.viewer_pool import ROOMS_PER_PROCESS, ViewerLost, ViewerPool, Watch
from tests.waiting import NEVER_S, until

STAND_IN = """
import json, os, sys
def report(**message): print(json.dumps(message), flush=True)
report(type="hello")
for text in sys.stdin:
    said = json.loads(text)
    name, do = said["name"], said.get("token", "")
    if said["type"] == "leave":
        report(type="left", name=name, packets_received=7, packets_lost=1, concealed_s=0.5)
    elif do == "refused":
        report(type="joined", name=name, error="no such room")
    elif do == "dies":
        sys.exit(3)
    elif do == "nonsense":
        print("Segmentation fault", flush=True)
    elif do == "environment":
        report(type="joined", name=name)
        report(type="link", name=name, state="environment", reason=" ".join(sorted(os.environ)))
    elif do == "talks":
        report(type="joined", name=name)
        report(type="seen", name=name, frames=[1.0, 1.04], onsets=[2.5])
        report(type="seen", name="somebody else", frames=[9.0])
    elif do != "silent":
        report(type="joined", name=name)
"""
"""A viewers' process: what a token says is what it does with the viewer."""


class Watched:
    """A watch that keeps what is reported to it."""

    def __init__(self, name: str) -> None:
        self.seen: list[Seen] = []
        self.links: list[Link] = []
        self.watch = Watch(name, self.seen.append, self.links.append)


@asynccontextmanager
async def pool_of(monkeypatch: pytest.MonkeyPatch, script: str = STAND_IN) -> AsyncIterator[ViewerPool]:
    monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, "-S", "-E", "-c", script))
    pool = ViewerPool()
    try:
        async with asyncio.timeout(NEVER_S):
            yield pool
    finally:
        await pool.aclose()
        assert all(not psutil.pid_exists(pid) for pid in pids(pool))


def pids(pool: ViewerPool) -> list[int]:
    return [each._process.pid for each in pool._processes if each._process is not None]


async def test_four_viewers_share_a_process_and_the_fifth_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_of(monkeypatch) as pool:
        watched = [Watched(str(n)) for n in range(ROOMS_PER_PROCESS + 1)]
        await asyncio.gather(*(pool.join(each.watch, "ws://x", "ok") for each in watched))
        assert len(pids(pool)) == 2
        left = await pool.leave(watched[0].watch)
        assert (left.name, left.packets_received, left.packets_lost, left.concealed_s) == ("0", 7, 1, 0.5)
        await pool.join(Watched("6").watch, "ws://x", "ok")
        assert len(pids(pool)) == 2, "the second one has room"
        assert await pool.leave(Watched("stranger").watch) == Left(name="stranger")


async def test_what_a_viewer_sees_reaches_its_own_watch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_of(monkeypatch) as pool:
        first, second = Watched("a"), Watched("b")
        await pool.join(first.watch, "ws://x", "talks")
        await pool.join(second.watch, "ws://x", "ok")
        await until(lambda: first.seen)
        assert first.seen == [Seen(name="a", frames=[1.0, 1.04], onsets=[2.5])] and second.seen == []


async def test_a_room_that_cannot_be_joined_is_reported_and_its_neighbours_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pool_of(monkeypatch) as pool:
        good, bad = Watched("a"), Watched("b")
        await pool.join(good.watch, "ws://x", "ok")
        with pytest.raises(ViewerLost, match="could not join: no such room"):
            await pool.join(bad.watch, "ws://x", "refused")
        assert good.links == [] and (await pool.leave(good.watch)).packets_received == 7


@pytest.mark.parametrize(
    ("does", "why"),
    [("dies", "the viewers' process ended"), ("nonsense", "the viewers' process talks nonsense: ValidationError")],
)
async def test_a_process_that_is_gone_loses_all_its_viewers_and_takes_no_more(
    does: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool_of(monkeypatch) as pool:
        there, fatal = Watched("a"), Watched("b")
        await pool.join(there.watch, "ws://x", "ok")
        with pytest.raises(ViewerLost, match=why):
            await pool.join(fatal.watch, "ws://x", does)
        assert there.links == [Link(name="a", state="disconnected", reason=why)]
        assert await pool.leave(there.watch) == Left(name="a"), "counts of zero, at once"
        later = Watched("c")
        await pool.join(later.watch, "ws://x", "ok")
        assert len(pids(pool)) == 2 and later.links == []


async def test_one_that_ends_before_it_says_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_of(monkeypatch, "import sys; sys.exit(1)") as pool:
        with pytest.raises(ViewerLost, match="the viewers' process ended"):
            await pool.join(Watched("a").watch, "ws://x", "ok")


async def test_one_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_of(monkeypatch) as pool:
        monkeypatch.setattr(pool_module, "COMMAND", ("/nowhere/python",))
        watched = Watched("a")
        with pytest.raises(ViewerLost, match="cannot be started: No such file"):
            await pool.join(watched.watch, "ws://x", "ok")
        assert await pool.leave(watched.watch) == Left(name="a")


async def test_a_viewer_that_never_joins_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_of(monkeypatch) as pool:
        await pool.join(Watched("a").watch, "ws://x", "ok")  # the process is there, however slow the machine
        monkeypatch.setattr(pool_module, "_HELLO_S", 0.0)
        monkeypatch.setattr(pool_module, "_JOIN_S", 0.05)
        with pytest.raises(ViewerLost, match="not in the room in time"):
            await pool.join(Watched("b").watch, "ws://x", "silent")


async def test_no_key_of_the_deployment_reaches_a_viewers_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_API_KEY", "k")
    monkeypatch.setenv("LIVEKIT_API_SECRET", "s")
    monkeypatch.setenv("HARMLESS", "h")
    async with pool_of(monkeypatch) as pool:
        watched = Watched("a")
        await pool.join(watched.watch, "ws://x", "environment")
        await until(lambda: watched.links)
        names = watched.links[0].reason.split()
        assert "HARMLESS" in names and not any(name.endswith(("_KEY", "_SECRET")) for name in names)


async def test_closing_kills_one_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = STAND_IN + "\nimport time\nwhile True: time.sleep(60)\n"
    monkeypatch.setattr(pool_module, "_EXIT_S", 0.05)
    async with pool_of(monkeypatch, hangs) as pool:
        await pool.join(Watched("a").watch, "ws://x", "ok")
        (pid,) = pids(pool)
        assert os.getpgid(pid) == pid, "a group of its own: Ctrl-C is for the load generator"


async def test_a_crowd_without_viewers_has_nothing_to_close() -> None:
    await ViewerPool().aclose()


@pytest.mark.parametrize(
    "message",
    [
        JoinViewer(name="ä", url="ws://x", token="t"),
        LeaveViewer(name="0"),
        Joined(name="0", error="two\nlines"),
        Seen(name="0", frames=[0.1, 1e9], whites=[], onsets=[2.0], offsets=[3.5]),
        Link(name="0", state="reconnecting"),
        Left(name="0", packets_received=1 << 40, concealed_s=1.25),
    ],
)
def test_every_message_is_one_line_and_comes_back(
    message: JoinViewer | LeaveViewer | Joined | Seen | Link | Left,
) -> None:
    text = line(message)
    assert text.endswith(b"\n") and text.count(b"\n") == 1
    assert (viewer_commands if isinstance(message, JoinViewer | LeaveViewer) else viewer_reports).validate_json(
        text
    ) == message


def test_an_orders_token_is_not_shown() -> None:
    assert "secret" not in repr(JoinViewer(name="0", url="ws://x", token="secret"))
