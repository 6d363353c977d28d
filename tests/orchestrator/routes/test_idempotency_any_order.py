"""One start for each key, for any order of callers that ask, leave and come back, and of starts that succeed and fail."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.routes.idempotency import Idempotency
from orchestrator.session.model import ENDED, NEXT, IllegalTransition, step
from tests.waiting import turns

_KEYS = st.sampled_from(["k", "l"])
_ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), _KEYS, st.sampled_from(["body", "body", "body", "another"])),
        st.tuples(st.just("succeed"), _KEYS, st.just("")),
        st.tuples(st.just("fail"), _KEYS, st.just("")),
        st.tuples(st.just("leave"), st.integers(0, 5).map(str), st.just("")),
        st.tuples(st.just("end"), _KEYS, st.just("")),
    ),
    max_size=30,
)


@dataclass
class Start:
    """An operation that a key began."""

    key: str
    body: str
    gate: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: bool = False
    abandoned: int = 0
    cancelled: bool = False


class Calls:
    """All callers and operations of one run."""

    def __init__(self) -> None:
        self.starts: list[Start] = []
        self.callers: list[tuple[str, str, asyncio.Task[Start]]] = []
        self.under_test: Idempotency[Start] = Idempotency(self.holds, self.abandon)

    async def holds(self, start: Start) -> bool:
        return not start.ended

    def abandon(self, start: Start) -> None:
        start.abandoned += 1

    def running(self, key: str) -> Start | None:
        return next((s for s in self.starts if s.key == key and not s.gate.done() and not s.cancelled), None)

    def ask(self, key: str, body: str) -> None:
        async def operation() -> Start:
            start = Start(key, body)
            self.starts.append(start)
            try:
                await start.gate
            except asyncio.CancelledError:
                start.cancelled = True
                raise
            return start

        self.callers.append((key, body, asyncio.create_task(self.under_test.run(key, body, operation))))


@settings(max_examples=200, deadline=None)
@given(acts=_ACTS, forgets=st.booleans())
def test_a_key_has_one_start_and_every_caller_its_answer(acts: list[tuple[str, str, str]], forgets: bool) -> None:
    async def played() -> None:
        calls = Calls()
        for act, who, body in acts:
            if act == "ask":
                calls.ask(who, body)
            elif act == "leave":
                waiting = [task for _, _, task in calls.callers if not task.done()]
                if waiting:
                    waiting[int(who) % len(waiting)].cancel()
            elif act == "end":
                for start in calls.starts:
                    start.ended = start.ended or (start.key == who and start.gate.done())
            elif (start := calls.running(who)) is not None:
                if act == "succeed":
                    start.gate.set_result("ok")
                else:
                    start.gate.set_exception(ProblemError(ErrorCode.AT_CAPACITY, "full"))
            await turns(12)
            for key in ("k", "l"):
                alive = [s for s in calls.starts if s.key == key and not s.gate.done() and not s.cancelled]
                assert len(alive) <= 1, "one start at a time for a key"
        for start in calls.starts:
            if not start.gate.done() and not start.cancelled:
                start.gate.set_result("ok")
        await turns(12)
        assert all(task.done() for *_, task in calls.callers), "nobody waits for ever"
        for key, body, task in calls.callers:
            if task.cancelled():
                continue
            problem = task.exception()
            if problem is None:
                start = task.result()
                assert (start.key, start.body) == (key, body) and start.gate.exception() is None
            else:
                assert isinstance(problem, ProblemError)
                assert problem.code in (ErrorCode.AT_CAPACITY, ErrorCode.IDEMPOTENCY_CONFLICT)
        served = {id(task.result()) for *_, task in calls.callers if not task.cancelled() and task.exception() is None}
        if forgets:
            assert all(start.abandoned <= 1 for start in calls.starts)
            assert not any(start.abandoned for start in calls.starts if id(start) in served)
            succeeded = [
                s for s in calls.starts if s.gate.done() and not s.gate.cancelled() and s.gate.exception() is None
            ]
            assert all(id(s) in served or s.abandoned for s in succeeded), "what nobody got is undone"
        else:
            assert not any(start.abandoned or start.cancelled for start in calls.starts)
        await calls.under_test.aclose()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.routes.idempotency.CLAIM_S", 0.0 if forgets else 3600.0)
        asyncio.run(played())


@given(walk=st.lists(st.sampled_from(SessionState), max_size=15))
def test_a_session_takes_no_step_that_is_not_in_the_table_and_none_after_its_end(walk: list[SessionState]) -> None:
    state, ended = SessionState.STARTING, False
    for to in walk:
        try:
            after = step(state, to)
        except IllegalTransition:
            assert to != state and to not in NEXT[state]
            continue
        assert after is to and (to == state or (not ended and to in NEXT[state]))
        state, ended = after, ended or after in ENDED
        assert ended == (state in ENDED)
