"""A start that fails, or is cancelled, at each of its waits: what it opened is closed, and the id can be used again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent import factory
from musetalk_agent.agent_metrics import REGISTRY
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.errors import EngineFailed, SessionNotFound
from musetalk_agent.protocol.http import DiagnosisCode
from musetalk_agent.session import session
from tests.musetalk_agent.faulty import DEADLINE_S, GatedPublisher, World, world
from tests.waiting import until

POINTS = ("prepare", "open", "first frame", "publisher", "session", "join", "joined")


class Point:
    """A point of the start, which fails or waits there. `waits` holds in a coroutine, `blocks` in a thread."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.reached, self.gate = threading.Event(), threading.Event()

    async def waits(self) -> None:
        self.reached.set()
        if self.error is not None:
            raise self.error
        await until(self.gate.is_set)  # cancelled here

    def blocks(self) -> None:
        self.reached.set()
        if self.error is not None:
            raise self.error
        assert self.gate.wait(DEADLINE_S)


def place(here: World, point: Point, name: str, patch: pytest.MonkeyPatch) -> None:
    """Puts the point into the start."""

    def before(owner: Any, attribute: str, *, thread: bool = False) -> None:
        real: Callable[..., Any] = getattr(owner, attribute)

        async def waiting(*args: Any, **more: Any) -> Any:
            await point.waits()
            return await real(*args, **more)

        def blocking(*args: Any, **more: Any) -> Any:
            point.blocks()
            return real(*args, **more)

        patch.setattr(owner, attribute, blocking if thread else waiting)

    def failing(*_: object, **__: object) -> None:
        point.reached.set()
        raise point.error or asyncio.CancelledError

    def joined() -> bool:
        return "b" in here.publishers and here.publishers["b"].state.connected

    match name:
        case "prepare":
            before(here.factory, "_bundle")
        case "open":
            before(here.factory.engines.batcher("pattern").engine, "open", thread=True)
        case "first frame":
            before(factory, "load_first", thread=True)
        case "publisher":  # an address that may not be used is found out here
            patch.setattr(here.factory, "_make_publisher", None)
            before(here.factory, "_publisher")
        case "session":
            patch.setattr(session.Session, "__init__", failing)
        case "join":
            before(GatedPublisher, "open")
        case "joined":  # the device fails just as the room is joined
            patch.setattr(here.factory.engines.batcher("pattern"), "check", lambda: failing() if joined() else None)


@pytest.mark.parametrize("how", ["fails", "is cancelled", "is cancelled twice", "is stopped"])
@pytest.mark.parametrize("name", POINTS)
async def test_nothing_is_left_of_a_start_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        point = Point(EngineFailed("it fails here") if how == "fails" else None)
        with monkeypatch.context() as patch:
            place(here, point, name, patch)
            starting = asyncio.create_task(here.start("b"))
            await here.until(point.reached.is_set)
            if how == "is stopped" and name in ("session", "joined"):  # these may end before the stop comes
                with contextlib.suppress(SessionNotFound):
                    await here.sessions.stop("b")
            elif how == "is stopped":
                for _ in range(2):
                    stopped = await here.sessions.stop("b")
                    assert (stopped.state, stopped.diagnosis.code) == ("stopped", DiagnosisCode.ROOM_NOT_JOINED)
                    assert "stopped while it was starting" in stopped.diagnosis.message
            elif how != "fails":
                starting.cancel()
                await asyncio.sleep(0)
                if how == "is cancelled twice":
                    starting.cancel()
            async with asyncio.timeout(DEADLINE_S):
                outcome = (await asyncio.gather(starting, return_exceptions=True))[0]
            assert isinstance(outcome, BaseException)
            assert isinstance(outcome, EngineFailed) == (how == "fails")
            assert here.sessions.empty
            point.gate.set()
            opened = int(name != "prepare" and not (name == "open" and how == "fails"))
            await here.until(lambda: here.plan.opened == here.plan.closed == opened)
        if made := here.publishers.get("b"):
            assert made.left == 1
        await here.until(lambda: here.factory.engines.ready)  # a device that failed is begun again
        await here.start("b")
        await here.sessions.stop("b")
        assert here.sessions.empty and here.plan.opened == here.plan.closed


async def test_a_caller_that_leaves_as_the_session_has_just_started_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        start = session.Session.start

        async def started(self: session.Session) -> None:
            await start(self)
            asyncio.get_running_loop().call_soon(starting.cancel)  # before the caller hears of it

        monkeypatch.setattr(session.Session, "start", started)
        starting = asyncio.create_task(here.start("b"))
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert here.sessions.empty and here.plan.opened == here.plan.closed == 1


async def test_the_end_of_the_agent_waits_for_sessions_that_end_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        monkeypatch.setattr(session, "LEAVE_S", DEADLINE_S)
        found = await here.start("b")
        here.publishers["b"].leave_gate.clear()
        stopping = asyncio.create_task(here.sessions.stop("b"))
        await here.until(lambda: here.publishers["b"].left)
        closing = asyncio.create_task(here.sessions.aclose())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done() and not found.ended.is_set()
        here.publishers["b"].leave_gate.set()
        await closing
        assert found.ended.is_set() and here.plan.opened == here.plan.closed
        await stopping


async def fails_with_its_card(here: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start whose card fails at this point raises it, and the engine is ready again."""
    point = Point(None)
    with monkeypatch.context() as patch:
        place(here, point, name, patch)
        starting = asyncio.create_task(here.start("b"))
        await here.until(point.reached.is_set)
        here.factory.engines.batcher("pattern").fail(EngineFailed("the card is gone"))
        point.gate.set()
        with pytest.raises(EngineFailed, match="the card is gone"):
            await starting
    await here.until(lambda: here.factory.engines.ready and here.plan.opened == here.plan.closed)


@pytest.mark.parametrize("name", ["prepare", "open", "first frame", "join"])
async def test_a_device_that_fails_during_a_start_fails_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        await fails_with_its_card(here, name, monkeypatch)
        await here.start("b")


@pytest.mark.parametrize("name", ["prepare", "open", "first frame", "join"])
async def test_a_start_looks_again_after_each_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Not even a failure that nobody calls the start off for leaves a session on a dead batcher."""
    async with world(tmp_path, monkeypatch) as here:
        here.factory.engines.on_failure = lambda name, error: None
        await fails_with_its_card(here, name, monkeypatch)


async def test_the_preparation_of_an_avatar_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as here:

        async def prepare(*_: object, **__: object) -> Bundle:
            return pattern_bundle(64, 64, 25)

        monkeypatch.setattr(here.factory.library, "prepare", prepare)
        monkeypatch.setattr(PatternEngine, "needs_face", True)
        before = REGISTRY.get_sample_value("avatar_prepare_seconds_count") or 0
        await here.start("b")
        assert REGISTRY.get_sample_value("avatar_prepare_seconds_count") == before + 1
