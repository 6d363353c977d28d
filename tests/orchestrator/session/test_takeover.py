"""What becomes of the sessions that the store holds when an orchestrator starts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent.protocol.http import AvatarSource, Picture, SessionState
from musetalk_agent.protocol.messages import CLOSE_POLICY, TAKEN_OVER
from orchestrator.keys import Caller, Scope
from orchestrator.routes.context import stored as stored_session
from orchestrator.routes.context import views
from orchestrator.session.journal import Sealed
from orchestrator.session.model import SessionRequest
from orchestrator.store.session_store import Progress, Seal, derive
from orchestrator.store.sqlite import SqliteStore
from tests.fakes.serving import plain_config, serving
from tests.fakes.stage import LIVEKIT_SECRET, Stage, stage
from tests.orchestrator.store.test_stores import stored
from tests.servers.redis import redis_server
from tests.waiting import NEVER_S, until

ORDER = SessionRequest(
    room="old", avatar=AvatarSource(), picture=Picture(), engine="pattern", rtmp_url="rtmp://host/app/KEY"
)


async def seed(path: Path, secret: str = LIVEKIT_SECRET, **fields: Any) -> None:
    """A record in a store that nobody has open, as a dead orchestrator leaves it."""
    store = SqliteStore(str(path), 600)
    await store.open()
    seal = Seal(derive(secret, "sessions", store.deployment_id))
    sealed = seal.encrypt(Sealed(order=ORDER, publisher_mode=ORDER.publisher).model_dump_json())
    assert "rtmp:" not in sealed
    await store.save(stored("ses_old", room="old", sealed=sealed, owner="orc_dead", **fields))
    await store.aclose()


async def silent(scope: Any, receive: Any, send: Any) -> None:
    """An agent that hangs."""
    await asyncio.Event().wait()


async def view(running: Stage, state: str, session_id: str = "ses_old") -> dict[str, Any]:
    """The session once it is in this state."""

    async def asked() -> dict[str, Any] | None:
        answer = await running.http.get(f"/session/{session_id}")
        return dict(answer.json()) if answer.status_code == 200 and answer.json()["state"] == state else None

    return await until(asked) or {}


async def test_one_whose_agent_is_gone_goes_on_at_another(tmp_path: Path) -> None:
    known = Progress(
        segments=4, unfinished={3: True, 4: False}, events_seen=7, sample_rate=24_000, received_samples=4800
    )
    await seed(tmp_path / "o.db", agent_url="http://127.0.0.1:9", moves=1, progress=known)
    async with stage(store_path=str(tmp_path / "o.db")) as running:
        session = await view(running, "ready")
        assert (session["moves"], session["room"]) == (2, "old")
        request = running.agent.only.request
        assert request.session_id == "ses_old" and request.rtmp is not None and request.rtmp.url == ORDER.rtmp_url
        credentials = running.app.state.context.credentials
        token = credentials.audio_token("ses_old", time.time() + 60)
        async with running.audio(f"{running.url.replace('http', 'ws')}/audio?session_id=ses_old&token={token}") as line:
            hello = await line.wait("hello")
            assert (hello["received_samples"], hello["sample_rate"]) == (4800, 24_000)
            finished = [await line.wait("playback.finished", count=count) for count in (1, 2)]
            assert [(one["segment"], one["interrupted"]) for one in finished] == [(3, True), (4, True)]
            await line.say("audio.start")
            await line.socket.send(bytes(4800))
            await line.say("audio.end")
            assert (await line.wait("playback.finished", count=3))["segment"] == 5
        assert (await running.http.post("/session/ses_old/stop")).json()["state"] == "stopped"


async def test_one_that_is_handed_on_before_its_agent_answered_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Progress(segments=4, unfinished={4: True}, events_seen=7, sample_rate=24_000, received_samples=4800)
    monkeypatch.setattr("orchestrator.recovery.FIRST_LOOK_S", 0.05)
    monkeypatch.setattr("orchestrator.session.session_runner.SNAPSHOT_TIMEOUT_S", NEVER_S)  # it stays undecided
    async with serving(plain_config(silent)) as url:
        await seed(tmp_path / "o.db", agent_url=url, progress=known)
        async with stage(store_path=str(tmp_path / "o.db"), agent_url=[url]) as running:
            busy = await running.http.post("/session/ses_old/interrupt")
            assert (busy.status_code, busy.json()["code"]) == (409, "session_conflict")
    store = SqliteStore(str(tmp_path / "o.db"), 600)
    await store.open()
    (record,) = await store.sessions()
    await store.aclose()
    assert (record.state, record.owner, record.progress) == (SessionState.RECOVERING, "", known)


async def test_one_that_has_expired_ends(tmp_path: Path) -> None:
    await seed(tmp_path / "o.db", agent_url="http://127.0.0.1:9", expires_at=time.time() - 1)
    async with stage(store_path=str(tmp_path / "o.db")) as running:
        assert (await view(running, "stopped"))["end_reason"] == "expired"
        assert running.agent.sessions == {}
        assert ("old", "avatar-ses_old") in running.rooms.removed


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"state": SessionState.STARTING}, "agent_unavailable"), ({"secret": "another secret"}, "internal_error")],
)
async def test_one_that_cannot_go_on_is_ended_and_readable(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    await seed(tmp_path / "o.db", agent_url="http://127.0.0.1:9", **fields)
    async with stage(store_path=str(tmp_path / "o.db")) as running:
        session = await view(running, "failed")
        assert session["error"]["code"] == code
        assert ("old", "avatar-ses_old") in running.rooms.removed
    async with stage(store_path=str(tmp_path / "o.db")) as running:  # an ended one is left as it is
        assert (await view(running, "failed")) == session
        assert [s["session_id"] for s in (await running.http.get("/sessions")).json()["sessions"]] == ["ses_old"]
        gone = await running.http.post("/session/ses_old/interrupt")
        assert (gone.status_code, gone.json()["code"]) == (409, "session_ended")


async def test_sessions_wait_for_the_next_process_and_those_in_memory_end(tmp_path: Path) -> None:
    async with stage(store_path=str(tmp_path / "o.db")) as running:
        agent = running.agent
        async with running.live() as (started, line):
            await line.socket.send(bytes(6400))
            await line.wait("playback.started")
            running.app.state.context.sessions.hand_over(started["session_id"])
            assert await line.closed() == 1012
        kept = await running.start()
    assert set(agent.sessions) == {started["session_id"], kept["session_id"]} and agent.stopped == []
    store = SqliteStore(str(tmp_path / "o.db"), 600)
    await store.open()
    records = {record.session_id: record for record in await store.sessions()}
    await store.aclose()
    assert {record.owner for record in records.values()} == {""}
    reported = records[started["session_id"]]
    assert reported.progress == Progress(
        segments=1, unfinished={1: True}, events_seen=1, sample_rate=16_000, received_samples=3200
    )
    async with stage() as running:
        agent = running.agent
        started = await running.start()
    assert agent.stopped == [started["session_id"]]


async def test_a_starter_sees_only_its_own_of_what_is_stored(tmp_path: Path) -> None:
    await seed(
        tmp_path / "o.db", state=SessionState.STOPPED, ended_at=time.time(), key="somebody", view={"session_id": "x"}
    )
    async with stage(store_path=str(tmp_path / "o.db")) as running:
        context = running.app.state.context
        assert await views(context, Caller("somebody", Scope.STARTER), set()) == [{"session_id": "x"}]
        assert await views(context, Caller("another", Scope.STARTER), set()) == []
        assert await views(context, Caller("another", Scope.OPERATOR), set()) == [{"session_id": "x"}]


async def test_one_whose_link_another_orchestrator_took_is_let_go() -> None:
    async with redis_server() as redis, stage(redis_url=redis.url) as running:
        async with running.live() as (started, line):

            async def is_stored() -> bool:
                record = await stored_session(running.app.state.context, None, started["session_id"])
                return record.state is SessionState.READY

            await until(is_stored)
            (socket,) = running.agent.only.sockets
            await socket.close(CLOSE_POLICY, TAKEN_OVER)
            assert await line.closed() == 1012
            agent = running.agent
            assert agent.stopped == [] and agent.only.connections == 1
            path = f"/session/{started['session_id']}"
            assert (await running.http.get(path)).json()["state"] == "ready"  # as it was stored
        session = await back(running, started["session_id"])  # nobody had it after all
        assert session["moves"] == 0
        await until(lambda: agent.only.connections == 2)  # the session is taken before its link is up
        await running.http.post(f"{path}/stop")


async def back(running: Stage, session_id: str) -> dict[str, Any]:
    """The session once this orchestrator has taken it again."""
    await until(lambda: running.app.state.context.sessions.registry.holds(session_id))
    return await view(running, "ready", session_id)
