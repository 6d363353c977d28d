"""The small parts of a session, each alone on virtual time: who waits for a clear, work in the background, what is asked of an
agent again, and when a start is given up."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol.http import AgentSession
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentFailed, AgentLease
from orchestrator.audio.segments import Clearing
from orchestrator.metrics import Metrics
from orchestrator.session.deps import BackgroundTasks
from orchestrator.session.model import ManagedSession
from orchestrator.session.session_failover import ACCEPTED_TRIES, REFUSED_TRIES, StartAttempts
from orchestrator.session.session_runner import FRESH_S, refresh
from orchestrator.session.speech_pipeline import CLEAR_ANSWER_S, PendingClears
from tests.orchestrator.session.world import ORDER
from tests.virtual_loop import virtually

# --- clears


def clearing(dropped_s: float = 0.0) -> Clearing:
    return Clearing(time.monotonic(), dropped_s, [1])


@virtually
async def test_everybody_who_waits_for_a_clear_gets_its_answer_at_once() -> None:
    clears, one = PendingClears("ses_1", Metrics()), clearing(0.5)
    waiting = [asyncio.create_task(clears.wait(one)) for _ in range(3)]
    await asyncio.sleep(0.3)
    one.dropped_s = 1.23456
    clears.answer(one)
    clears.answer(one)  # reported twice
    assert await asyncio.gather(*waiting) == [1.235] * 3
    assert time.monotonic() == 1000.3


@virtually
async def test_an_answer_is_for_its_own_clear() -> None:
    clears, first, second = PendingClears("ses_1", Metrics()), clearing(1.0), clearing(2.0)
    waiting = [asyncio.create_task(clears.wait(each)) for each in (first, second)]
    await asyncio.sleep(0.1)
    clears.answer(second)
    done, pending = await asyncio.wait(waiting, timeout=0.1)
    assert [task.result() for task in done] == [2.0] and len(pending) == 1
    clears.answer(first)
    assert await waiting[0] == 1.0


@virtually
async def test_a_clear_that_is_never_answered_holds_its_caller_for_a_second() -> None:
    clears, one = PendingClears("ses_1", Metrics()), clearing(0.7)
    begun = time.monotonic()
    assert await clears.wait(one) == 0.7, "what was known of it then"
    assert time.monotonic() - begun == pytest.approx(CLEAR_ANSWER_S)
    clears.answer(one)  # too late, and harmless


@virtually
async def test_one_that_was_answered_before_anybody_waits_does_not_wait() -> None:
    clears, one = PendingClears("ses_1", Metrics()), clearing(0.7)
    one.answered = True
    assert await clears.wait(one) == 0.7 and time.monotonic() == 1000.0


@virtually
async def test_a_caller_that_leaves_and_the_end_of_the_session_leave_nobody_behind() -> None:
    clears, one = PendingClears("ses_1", Metrics()), clearing(0.7)
    leaves, stays = (asyncio.create_task(clears.wait(one)) for _ in range(2))
    await asyncio.sleep(0.1)
    leaves.cancel()
    await asyncio.wait({leaves})
    clears.give_up()
    clears.give_up()
    assert await stays == 0.0 and leaves.cancelled() and clears._waiters == {}


# --- background work


@virtually
async def test_the_end_waits_for_what_matters_and_cancels_the_rest() -> None:
    background, done = BackgroundTasks(), list[str]()

    async def work(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        done.append(name)

    tasks = {
        name: background.spawn(work(name, seconds), name, awaited=awaited)
        for name, seconds, awaited in (
            ("matters", 2.0, True),
            ("matters and is late", 60.0, True),
            ("does not, and is done", 1.0, False),
            ("does not", 60.0, False),
        )
    }
    await background.aclose(5.0)
    assert done == ["does not, and is done", "matters"] and time.monotonic() == 1005.0
    assert [name for name, task in tasks.items() if task.cancelled()] == ["matters and is late", "does not"]


@virtually
async def test_work_that_fails_does_not_keep_the_end_from_the_rest() -> None:
    background = BackgroundTasks()

    async def fails() -> None:
        raise ValueError("a bug")

    task = background.spawn(fails(), "fails", awaited=True)
    await asyncio.sleep(1.0)
    with pytest.raises(ValueError, match="a bug"):
        task.result()
    await background.aclose(5.0)
    await background.aclose(5.0)
    assert time.monotonic() == 1001.0, "nothing is waited for"


# --- snapshots


class Asked:
    """An agent's client that counts how often it was asked."""

    def __init__(self, seconds: float = 0.0, fails: bool = False) -> None:
        self.count = 0
        self.seconds, self.fails = seconds, fails

    async def session(self, *_: Any) -> AgentSession:
        self.count += 1
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, "it says nothing")
        return cast(AgentSession, SimpleNamespace(number=self.count))


def placed() -> ManagedSession:
    session = ManagedSession("ses_1", ORDER, time.time() + 60, asyncio.get_running_loop().create_future())
    session.lease = AgentLease("http://a")
    return session


@pytest.mark.parametrize("fails", [False, True])
def test_an_agent_is_asked_once_in_half_a_second_however_many_look(fails: bool) -> None:
    @virtually
    async def played() -> None:
        session, asked = placed(), Asked(seconds=0.2, fails=fails)
        agents = cast(AgentClient, asked)
        await asyncio.gather(*(refresh(agents, session) for _ in range(10)))
        assert asked.count == 1 and (session.snapshot is None) is fails
        await asyncio.sleep(FRESH_S - 0.1)
        await refresh(agents, session)
        assert asked.count == 1
        await asyncio.sleep(0.2)
        await refresh(agents, session)
        assert asked.count == 2

    played()


@virtually
async def test_the_word_of_an_agent_that_lost_the_session_meanwhile_does_not_count() -> None:
    session, asked = placed(), Asked(seconds=1.0)
    looking = asyncio.create_task(refresh(cast(AgentClient, asked), session))
    await asyncio.sleep(0.5)
    session.lease = AgentLease("http://b")
    await looking
    assert session.snapshot is None


@virtually
async def test_nobody_is_asked_of_a_session_without_an_agent() -> None:
    session, asked = placed(), Asked()
    session.lease = None
    await refresh(cast(AgentClient, asked), session)
    assert asked.count == 0


@virtually
async def test_a_look_that_is_cancelled_leaves_the_next_one_free() -> None:
    session, asked = placed(), Asked(seconds=5.0)
    looking = asyncio.create_task(refresh(cast(AgentClient, asked), session))
    await asyncio.sleep(1.0)
    looking.cancel()
    await asyncio.wait({looking})
    asked.seconds = 0.0
    await refresh(cast(AgentClient, asked), session)
    assert asked.count == 2 and session.snapshot is not None


# --- tries of a start

_FAILS = {
    "refused: full": lambda: ProblemError(ErrorCode.AT_CAPACITY, "full"),
    "refused: away": lambda: ProblemError(ErrorCode.AGENT_UNAVAILABLE, "away"),
    "refused: drains": lambda: ProblemError(ErrorCode.DRAINING, "drains"),
    "accepted": lambda: AgentFailed(ErrorCode.AGENT_UNAVAILABLE, "died of it"),
    "the session's own": lambda: ProblemError(ErrorCode.AVATAR_EMPTY, "No frame."),
}


@given(fails=st.lists(st.sampled_from(list(_FAILS)), max_size=12))
def test_a_start_goes_on_to_another_agent_until_it_is_the_starts_own_fault(fails: list[str]) -> None:
    tries = StartAttempts()
    for n, kind in enumerate(fails):
        goes_on = tries.failed(AgentLease(f"http://a{n}"), _FAILS[kind]())
        asked = fails[: n + 1]
        accepted, refused = asked.count("accepted"), sum(each.startswith("refused") for each in asked)
        wanted = accepted < ACCEPTED_TRIES and refused < REFUSED_TRIES and kind != "the session's own"
        assert goes_on is wanted
        assert tries.avoid == {f"http://a{m}" for m in range(n + 1)}, "nobody is asked twice"
