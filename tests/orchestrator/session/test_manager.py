"""What a session leaves behind, however it begins and ends."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.session.model import SessionRequest
from tests.fakes.fleet import fleet
from tests.fakes.stage import Stage, stage
from tests.orchestrator.session.lifetimes import looked_at, wound
from tests.waiting import NEVER_S, until

ORDER = SessionRequest(room="r", avatar=AvatarSource(), picture=Picture(), engine="pattern")
BODY = {"room": "r", "engine": "pattern"}


def own_tasks() -> set[str]:
    """Names of the tasks of sessions that run."""
    prefixes = (
        "session-",
        "start-",
        "undo-",
        "live-",
        "link-",
        "watch-",
        "attend-",
        "serve-",
        "late-stop-",
        "speech-",
        "audio-",
    )
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(prefixes)}


async def come_to(running: Stage, session_id: str, *states: str) -> dict[str, Any]:
    """The session once it is in one of these states."""

    async def asked() -> dict[str, Any] | None:
        session = dict((await running.http.get(f"/session/{session_id}")).json())
        return session if session["state"] in states else None

    return await until(asked) or {}


async def ended(running: Stage, session_id: str) -> dict[str, Any]:
    return await come_to(running, session_id, "stopped", "failed")


@pytest.mark.parametrize(
    ("overrides", "viewers", "reason"),
    [
        ({"session_max_s": 1}, 1, "expired"),
        ({"session_idle_ttl_s": 0.5}, 1, "idle"),
        ({"viewer_grace_s": 0.5}, 0, "no_viewers"),
    ],
)
async def test_sessions_end_by_themselves(overrides: dict[str, float], viewers: int, reason: str) -> None:
    async with stage(**overrides) as running:
        running.agent.viewers = viewers
        started = await running.start()
        session = await ended(running, started["session_id"])
        assert (session["state"], session["end_reason"], session["error"]) == ("stopped", reason, None)
        assert running.agent.stopped == [started["session_id"]]
        await until(lambda: not own_tasks())


async def test_audio_keeps_a_session_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends for longer than a session without audio lives."""
    clock = wound(monkeypatch)
    async with stage(session_idle_ttl_s=300.0) as running, running.live() as (started, line):
        session = running.app.state.context.sessions.registry.get(started["session_id"])
        for _ in range(2):
            last = session.live.last_audio_at
            await line.socket.send(bytes(640))
            await until(lambda: session.live.last_audio_at != last and session.live.quiet)  # noqa: B023
            await looked_at(session)
            clock.ahead_s += 200.0
            await looked_at(session)
            assert not session.ended and running.agent.stopped == []
        clock.ahead_s += 150.0
        assert (await ended(running, started["session_id"]))["end_reason"] == "idle"
        assert await line.closed() == 1001


async def test_a_session_is_ready_while_its_agent_hears_nobody_speak() -> None:
    """It is sent to all the time: what pauses is no speech either."""
    async with stage() as running, running.live() as (started, line):

        async def sent_to(state: str) -> None:
            async def asked() -> bool:
                await line.socket.send(bytes(640))
                session = (await running.http.get(f"/session/{started['session_id']}")).json()
                return bool(session["state"] == state)

            await until(asked)

        await sent_to("speaking")
        running.agent.only.resting = True
        await sent_to("ready")
        running.agent.only.resting = False
        await sent_to("speaking")


async def test_twenty_sessions_leave_nothing_behind(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("livekit_rooms.COURTESY_S", "agents.agent_client._CONNECT_TIMEOUT_S"):
        monkeypatch.setattr(f"orchestrator.{bound}", NEVER_S)  # twenty at once take a slow machine longer
    running.agent.sessions_max = 20
    started = await asyncio.gather(*(running.start(room=f"r{n}") for n in range(20)))
    assert len(own_tasks()) >= 60
    await asyncio.gather(*(running.http.post(f"/session/{s['session_id']}/stop") for s in started))
    assert own_tasks() == set()
    assert running.agent.sessions == {} and sorted(running.agent.stopped) == sorted(s["session_id"] for s in started)
    assert len(running.rooms.removed) == 20
    status = await running.app.state.context.pool.status()
    assert status[0].leases == 0


async def test_a_start_that_fails_is_undone(running: Stage) -> None:
    running.agent.start_error = ProblemError(ErrorCode.AVATAR_EMPTY, "No frame in it.")
    assert (await running.http.post("/session/start", json=BODY)).status_code == 422
    assert (await running.http.get("/sessions")).json() == {"sessions": []}
    assert own_tasks() == set()
    assert (await running.app.state.context.pool.status())[0].leases == 0


async def test_a_start_that_is_given_up_is_undone_when_the_agent_is_through(running: Stage) -> None:
    running.agent.may_start.clear()
    starting = asyncio.create_task(running.http.post("/session/start", json=BODY))
    await until(lambda: running.agent.starts == 1)
    (listed,) = (await running.http.get("/sessions")).json()["sessions"]
    assert (await running.http.post(f"/session/{listed['session_id']}/stop")).json()["state"] == "stopped"
    assert (await starting).json()["code"] == "session_ended"
    assert running.agent.stopped == []
    running.agent.may_start.set()
    await until(lambda: running.agent.stopped == [listed["session_id"]])
    assert running.agent.sessions == {}


async def test_a_link_that_does_not_open_undoes_the_start(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.session.session_runner.LINK_OPEN_S", 0.3)
    running.agent.refuse_link = True
    answer = await running.http.post("/session/start", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "agent_unavailable")
    assert len(running.agent.stopped) == 1 and running.agent.sessions == {}
    assert own_tasks() == set()


async def test_an_agent_that_filled_up_meanwhile_is_passed_over() -> None:
    async with stage(agents=2) as running:  # both addresses lead to the same agent, full for its first caller only
        running.agent.full_times = 1
        started = await running.start()
        assert started["state"] == "ready"


async def test_stopping_a_session_whose_agent_died_still_ends_it(running: Stage) -> None:
    started = await running.start()
    running.agent.sessions.clear()
    stopped = await running.http.post(f"/session/{started['session_id']}/stop")
    assert stopped.json()["state"] == "stopped"
    assert own_tasks() == set()


async def test_the_apps_end_is_every_sessions_end() -> None:
    async with stage() as running:
        started = await running.start()
        agent = running.agent
    assert agent.stopped == [started["session_id"]]
    assert own_tasks() == set()


async def test_a_session_without_any_agent_says_so() -> None:
    async with stage(agent_url="http://127.0.0.1:9") as running:
        answer = await running.http.post("/session/start", json=BODY)
        assert (answer.status_code, answer.json()["code"]) == (503, "agent_unavailable")
        assert own_tasks() == set()


async def test_a_start_that_kills_agents_reaches_two_of_them_and_no_more() -> None:
    async with fleet(4) as here:
        for agent in here.agents.values():
            agent.start_breaks = True
        answer = await here.stage.http.post("/session/start", json=BODY)
        assert (answer.status_code, answer.json()["code"]) == (503, "agent_unavailable")
        assert sorted(agent.starts for agent in here.agents.values()) == [0, 0, 1, 1]
        assert here.stage.app.state.context.sessions.registry.all() == []


async def test_an_agent_that_dies_of_a_start_is_passed_over_once() -> None:
    async with fleet(2) as here:
        first, second = here.agents.values()
        first.start_breaks = True
        second.sessions_max = 4  # the first one is asked first
        started = await here.stage.start()
        assert here.of(started["session_id"]) is second and (first.starts, second.starts) == (1, 1)


async def test_agents_that_fill_up_meanwhile_are_each_asked_once() -> None:
    async with fleet(3) as here:
        for agent in here.agents.values():
            agent.full_times = 100
        async with asyncio.timeout(NEVER_S):
            answer = await here.stage.http.post("/session/start", json=BODY)
        assert (answer.status_code, answer.json()["code"]) == (503, "at_capacity")
        assert [agent.starts for agent in here.agents.values()] == [1, 1, 1]


@pytest.mark.parametrize("broken", ["live.end", "agents.stop", "rooms.remove", "pool.release", "metrics"])
async def test_an_end_of_which_a_step_breaks_is_an_end(
    running: Stage, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    started = await running.start()
    context = running.app.state.context
    session = context.sessions.registry.get(started["session_id"])

    def fails(*arguments: object) -> None:
        raise RuntimeError("a bug")

    async def fails_later(*arguments: object) -> None:
        raise RuntimeError("a bug")

    if broken == "live.end":
        monkeypatch.setattr(session.live, "end", fails)
    elif broken == "metrics":
        monkeypatch.setattr(context.metrics.ends, "labels", fails)
    else:
        part, _, name = broken.partition(".")
        monkeypatch.setattr(getattr(context, part), name, fails if part == "pool" else fails_later)
    stopped = await running.http.post(f"/session/{started['session_id']}/stop")
    assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
    assert session.owner is not None and session.owner.done() and not session.owner.cancelled()
    if broken != "agents.stop":
        assert running.agent.stopped == [started["session_id"]]
    if broken != "rooms.remove":
        assert running.rooms.removed == [("stage", started["avatar_identity"])]
    await context.journal.flush()
    record = await context.journal.store.load(started["session_id"])
    assert record is not None and record.ended and await context.journal.store.holder(record.session_id) is None


async def test_a_start_that_is_ended_before_its_first_step_says_so(running: Stage) -> None:
    sessions = running.app.state.context.sessions
    starting = asyncio.create_task(sessions.start(ORDER))
    await asyncio.sleep(0)
    (session,) = sessions.registry.running()
    session.owner.cancel()  # nothing of it has run yet
    async with asyncio.timeout(NEVER_S):
        with pytest.raises(ProblemError) as caught:
            await starting
    assert caught.value.code is ErrorCode.SESSION_ENDED
    assert sessions.registry.all() == []


async def test_a_step_of_the_wall_clock_ends_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    wound(monkeypatch)
    async with stage(session_idle_ttl_s=300.0, viewer_grace_s=300.0) as running:
        started = await running.start()
        context = running.app.state.context
        session = context.sessions.registry.get(started["session_id"])
        real = time.time
        monkeypatch.setattr("time.time", lambda: real() + 12 * 3600)
        await looked_at(session)
        assert not session.ended and running.agent.stopped == []


async def test_a_voice_that_is_not_to_be_had_is_said_before_an_agent_is_asked(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.session.standby_voice.LINES_MAX", 0)
    answer = await running.http.post("/session/start", json={**BODY, "speaker": "orchestrator"})
    assert (answer.status_code, answer.json()["code"]) == (503, "at_capacity")
    assert running.agent.starts == 0 and running.rooms.removed == []


async def test_many_who_look_at_a_session_ask_its_agent_once_also_when_it_is_silent(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await running.start()
    context = running.app.state.context
    session = context.sessions.registry.get(started["session_id"])
    asked = 0

    async def silent(*arguments: object) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.1)  # it is slow: the others come meanwhile
        raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, "it says nothing")

    monkeypatch.setattr("orchestrator.session.session_runner.FRESH_S", 60.0)
    monkeypatch.setattr(context.agents, "session", silent)
    async with session.refreshing:
        session.snapshot_at = float("-inf")
    answers = await asyncio.gather(*(running.http.get(f"/session/{session.session_id}") for _ in range(30)))
    assert {answer.json()["state"] for answer in answers} == {"ready"} and asked == 1


async def test_a_cancelled_task_that_a_session_waited_for_is_a_failure_and_no_stop(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled_elsewhere(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("orchestrator.session.session_runner.refresh", cancelled_elsewhere)
    started = await running.start()
    session = running.app.state.context.sessions.registry.get(started["session_id"])
    async with asyncio.timeout(NEVER_S):
        await asyncio.wait({session.owner})
    assert session.state.value == "failed" and session.end_reason == "internal_error"
    assert session.error is not None and session.error.code is ErrorCode.INTERNAL
    assert session.session_id not in running.app.state.context.journal._held
