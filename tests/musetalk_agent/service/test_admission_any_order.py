"""Whatever starts, fails, is stopped or ends, in any order: never more sessions than there is room for, and no place is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.admission.admission import Admission
from musetalk_agent.card_estimates import PACED_MOST
from musetalk_agent.clock import MonotonicClock, VirtualClock
from musetalk_agent.errors import AtCapacity, EngineUnavailable, SessionConflict, SessionEnded
from musetalk_agent.factory import Factory
from musetalk_agent.media.player import PlayerStatistics
from musetalk_agent.protocol.http import (
    AgentSession,
    AgentStartRequest,
    AvatarSource,
    Diagnosis,
    DiagnosisCode,
    SessionState,
)
from musetalk_agent.publishers.base import NullPublisher
from musetalk_agent.publishers.film.film import SessionFilm
from musetalk_agent.service.live_sessions import LiveSessions
from tests.musetalk_agent.admission.granted import Granted
from tests.waiting import turns


class Held:
    """A session that is in its room until it is stopped."""

    def __init__(self, request: AgentStartRequest) -> None:
        self.id, self.engine = request.session_id, str(request.engine)
        self.state, self.ended = SessionState.STARTING, asyncio.Event()
        self.events = SimpleNamespace(changed=asyncio.Event())
        self.film = SessionFilm(MonotonicClock())
        self.stops = 0
        self.bundle = SimpleNamespace(width=64, height=64, fps=25, relief=None)
        self.publisher = NullPublisher(VirtualClock())
        self.pipeline = SimpleNamespace(player=SimpleNamespace(statistics=PlayerStatistics()))

    async def start(self) -> None:
        self.state = SessionState.READY

    async def stop(self) -> None:
        self.stops += 1
        self.over(SessionState.STOPPED)

    def over(self, state: SessionState) -> None:
        if not self.ended.is_set():
            self.state = state
            self.ended.set()

    def break_off(self, error: Exception) -> None:
        self.over(SessionState.FAILED)

    def status(self) -> AgentSession:
        return AgentSession(
            session_id=self.id,
            state=self.state,
            room="r",
            publisher="none",
            engine=self.engine,
            fps=25,
            width=64,
            height=64,
            diagnosis=Diagnosis(code=DiagnosisCode.OK, message="All is well."),
            started_at="2026-11-28T20:53:00Z",
        )


@dataclass
class Shop:
    """A factory whose preparations last until the test lets them end, well or not. `holds` is what each engine can hold."""

    most: int | None
    holds: dict[str, int | None]
    preparing: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device = SimpleNamespace(engine=SimpleNamespace(device="cpu"))
        self.settings = SimpleNamespace(max_sessions=self.most)
        self.engines = SimpleNamespace(
            default="warp",
            on_failure=None,
            resolve=lambda name: name,
            batcher=lambda name: device,
            capacity=lambda name, fps: self.holds[name],
        )

    async def session(self, request: AgentStartRequest) -> Held:
        gate = self.preparing[request.session_id] = asyncio.get_running_loop().create_future()
        try:
            await gate
        finally:
            del self.preparing[request.session_id]
        return Held(request)


def request(name: str, engine: str) -> AgentStartRequest:
    return AgentStartRequest(
        session_id=name,
        room="r",
        livekit_url="ws://x",
        livekit_token="t",
        avatar=AvatarSource(),
        engine=engine,
    )


def made(most: int | None, warp: int | None, pattern: int | None = None) -> tuple[LiveSessions, Shop]:
    shop = Shop(most, {"warp": warp, "pattern": pattern})
    admission = Admission(most, Granted(cores=1000), VirtualClock())
    return LiveSessions(cast(Factory, shop), admission=admission), shop


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "start", "ready", "fails", "leaves", "stop", "stop", "ends", "breaks"]),
        st.integers(0, 6),
        st.sampled_from(["warp", "pattern"]),
    ),
    max_size=50,
)


@given(ACTS, st.none() | st.integers(1, 5), st.none() | st.integers(1, 4), st.none() | st.integers(1, 3))
@settings(max_examples=80)
async def test_there_are_never_more_than_fit_and_who_is_refused_finds_no_place(
    acts: list[tuple[str, int, str]], most: int | None, warp: int | None, pattern: int | None
) -> None:
    sessions, shop = made(most, warp, pattern)
    limit = min([n for n in (most, warp) if n is not None] or [PACED_MOST])
    held: dict[str, str] = {}  # what takes a place, and on which engine
    callers: dict[str, asyncio.Task[Any]] = {}
    for act, number, engine in acts:
        name = f"s{number}"
        running = name in held and name not in shop.preparing
        if act == "start":
            fits = len(held) < limit and list(held.values()).count(engine) < (shop.holds[engine] or 99)
            caller = asyncio.create_task(sessions.start(request(name, engine)))
            await turns(3)
            assert caller.done() == (name in held or not fits), "nobody waits for a place"
            if name in held:
                with pytest.raises(SessionConflict):
                    await caller
            elif fits:
                assert name in shop.preparing
                held[name], callers[name] = engine, caller
            else:
                with pytest.raises(AtCapacity) as refused:
                    await caller
                assert refused.value.retry_after_s == 5 and refused.value.limit in (limit, shop.holds[engine])
        elif act in ("ready", "fails") and name in shop.preparing:
            gate = shop.preparing[name]
            if act == "ready":
                gate.set_result(None)
                assert (await callers[name]).id == name
            else:
                gate.set_exception(OSError("no clip"))
                with pytest.raises(OSError, match="no clip"):
                    await callers[name]
                del held[name]
        elif act == "leaves" and name in shop.preparing:
            callers[name].cancel()
            with pytest.raises(asyncio.CancelledError):
                await callers[name]
            del held[name]
        elif act == "stop" and name in held:
            starting = name in shop.preparing
            assert (await sessions.stop(name)).state is SessionState.STOPPED
            if starting:
                with pytest.raises(SessionEnded, match="while it was starting"):
                    await callers[name]
            del held[name]
            assert (await sessions.stop(name)).state is SessionState.STOPPED, "twice is fine, and frees one place"
        elif act in ("ends", "breaks") and running:
            cast(Held, sessions.get(name)).over(SessionState.STOPPED if act == "ends" else SessionState.FAILED)
            del held[name]
        reported = sessions.capacity()
        assert (reported.sessions, reported.sessions_max) == (len(held), limit) and len(held) <= limit
        assert sessions.empty == (not held)
    await sessions.aclose()
    await asyncio.gather(*callers.values(), return_exceptions=True)
    assert sessions.empty and not shop.preparing, "the end of the agent leaves nothing"


async def test_an_engine_that_cannot_hold_even_one_says_so_and_takes_no_place() -> None:
    sessions, _ = made(4, None, 0)
    with pytest.raises(
        EngineUnavailable, match=r"'pattern' on cpu is too slow for one session at 25 pictures a second"
    ):
        await sessions.start(request("a", "pattern"))
    assert sessions.capacity().sessions == 0 and sessions.empty


async def test_the_sentence_of_a_refusal_says_which_limit_it_was() -> None:
    sessions, shop = made(2, 2, 1)
    starts = [asyncio.create_task(sessions.start(request("a", "pattern")))]
    await turns(3)
    with pytest.raises(AtCapacity, match="holds 1 sessions of the engine 'pattern', as many as its device can") as full:
        await sessions.start(request("b", "pattern"))
    assert full.value.limit == 1
    starts.append(asyncio.create_task(sessions.start(request("b", "warp"))))
    await turns(3)
    with pytest.raises(
        AtCapacity, match="holds 2 of 2 sessions, and what limits it is AGENT_MAX_SESSIONS; try"
    ) as full:
        await sessions.start(request("c", "warp"))
    assert full.value.limit == 2 and set(shop.preparing) == {"a", "b"}
    await sessions.aclose()
    await asyncio.gather(*starts, return_exceptions=True)


async def test_a_failing_engine_ends_its_own_sessions_and_starts_and_no_others() -> None:
    sessions, shop = made(8, None)
    on_warp, on_pattern, starting = (
        asyncio.create_task(sessions.start(request(name, engine)))
        for name, engine in (("w", "warp"), ("p", "pattern"), ("s", "pattern"))
    )
    await turns(3)
    for name in ("w", "p"):
        shop.preparing[name].set_result(None)
    await asyncio.gather(on_warp, on_pattern)
    shop.engines.on_failure("pattern", EngineUnavailable("The device failed."))
    with pytest.raises(Exception, match=r"The device failed\."):
        await starting
    assert [session.id for session in sessions.live()] == ["w"] and sessions.capacity().sessions == 1
    assert sessions.status("p").state is SessionState.FAILED
    await sessions.aclose()
