from __future__ import annotations

import asyncio
import time

import pytest

from musetalk_agent.protocol.http import AvatarSource, Picture, SessionState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.routes.idempotency import MAX_KEYS, Idempotency
from orchestrator.session.manager import MAX_ENDED, SessionRegistry
from orchestrator.session.model import ManagedSession, SessionRequest
from tests.waiting import NEVER_S, turns

ORDER = SessionRequest(room="r", avatar=AvatarSource(), picture=Picture())


def session(name: str, ended_at: float | None = None) -> ManagedSession:
    made = ManagedSession(name, ORDER, time.time() + 60, asyncio.get_running_loop().create_future())
    if ended_at is not None:
        made.base_state, made.ended_at = SessionState.STOPPED, ended_at
    return made


async def nothing() -> None:
    """In place of what runs a session."""


async def test_ended_sessions_are_kept_for_a_while_and_running_ones_for_ever() -> None:
    registry = SessionRegistry(keep_s=600)
    now = time.time()
    for name, ended_at in (("old", now - 601), ("recent", now - 599), ("running", None)):
        registry.add(session(name, ended_at), nothing())
    assert [kept.session_id for kept in registry.all()] == ["recent", "running"]
    assert [kept.session_id for kept in registry.running()] == ["running"]
    with pytest.raises(ProblemError) as caught:
        registry.get("old")
    assert caught.value.code is ErrorCode.SESSION_NOT_FOUND


async def test_the_memory_of_ended_sessions_is_bounded() -> None:
    registry = SessionRegistry(keep_s=600)
    running = session("running")
    registry.add(running, nothing())
    for n in range(MAX_ENDED + 20):
        registry.add(session(f"s{n}", time.time()), nothing())
    kept = registry.all()
    assert len(kept) == MAX_ENDED + 1 and kept[0] is running and kept[1].session_id == "s20"


async def test_one_operation_for_all_who_ask_with_the_same_key() -> None:
    idempotency: Idempotency[int] = Idempotency()
    calls = 0

    async def operation() -> int:
        nonlocal calls
        calls += 1
        await turns()  # the others ask meanwhile
        return calls

    answers = await asyncio.gather(*(idempotency.run("k", "body", operation) for _ in range(5)))
    assert answers == [1] * 5 and await idempotency.run("k", "body", operation) == 1
    assert await idempotency.run("other", "body", operation) == 2
    with pytest.raises(ProblemError) as caught:
        await idempotency.run("k", "another body", operation)
    assert caught.value.code is ErrorCode.IDEMPOTENCY_CONFLICT


async def test_an_operation_survives_the_caller_and_a_failure_is_forgotten() -> None:
    idempotency: Idempotency[str] = Idempotency()
    outcomes = [ProblemError(ErrorCode.AT_CAPACITY, "full"), None]
    release = asyncio.Event()

    async def operation() -> str:
        await release.wait()
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return "made"

    first = asyncio.create_task(idempotency.run("k", "b", operation))
    await asyncio.sleep(0)
    first.cancel()
    second = asyncio.create_task(idempotency.run("k", "b", operation))
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(ProblemError):
        await second
    assert await idempotency.run("k", "b", operation) == "made"


async def test_keys_are_bounded() -> None:
    idempotency: Idempotency[int] = Idempotency()

    async def operation() -> int:
        return 1

    for n in range(MAX_KEYS + 5):
        await idempotency.run(str(n), "b", operation)
    assert len(idempotency) == MAX_KEYS


async def test_an_answer_that_nobody_got_is_undone_unless_its_key_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.routes.idempotency.CLAIM_S", 0.05)
    undone: list[str] = []
    over = asyncio.Event()

    def abandon(answer: str) -> None:
        undone.append(answer)
        over.set()

    idempotency: Idempotency[str] = Idempotency(abandon=abandon)
    release, made = asyncio.Event(), 0

    async def operation() -> str:
        nonlocal made
        made += 1
        number = made
        await release.wait()
        return f"made {number}"

    async def left(key: str) -> None:
        caller = asyncio.create_task(idempotency.run(key, "b", operation))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait({caller})

    await left("claimed")
    release.set()
    assert await idempotency.run("claimed", "b", operation) == "made 1"
    await left("not claimed")
    async with asyncio.timeout(NEVER_S):
        await over.wait()
    assert undone == ["made 2"], "the other one reached its caller"
    assert await idempotency.run("claimed", "b", operation) == "made 1"
    assert await idempotency.run("not claimed", "b", operation) == "made 3"
    assert undone == ["made 2"]


async def test_an_operation_that_nobody_waits_for_any_more_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.routes.idempotency.CLAIM_S", 0.01)
    idempotency: Idempotency[str] = Idempotency()
    cancelled = asyncio.Event()

    async def operation() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    caller = asyncio.create_task(idempotency.run("k", "b", operation))
    await asyncio.sleep(0)
    caller.cancel()
    async with asyncio.timeout(NEVER_S):
        await cancelled.wait()
    assert len(idempotency) == 0
    await asyncio.wait({caller})


async def test_answers_have_an_age_and_hold_only_as_long_as_they_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = True, 0

    async def holds(answer: int) -> bool:
        await asyncio.sleep(0)
        return true

    async def operation() -> int:
        nonlocal calls
        calls += 1
        return calls

    idempotency: Idempotency[int] = Idempotency(holds=holds)
    assert [await idempotency.run("k", "b", operation) for _ in range(2)] == [1, 1]
    true = False
    answers = await asyncio.gather(*(idempotency.run("k", "b", operation) for _ in range(3)))
    assert answers == [2, 2, 2], "run again, and once"
    true = True
    monkeypatch.setattr("orchestrator.routes.idempotency.MAX_AGE_S", -1.0)
    assert await idempotency.run("k", "b", operation) == 3
