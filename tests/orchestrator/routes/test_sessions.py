"""Start, state, stop: the shapes of the contract, idempotency, and what the agent and LiveKit are asked."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import datetime
from typing import Any

import httpx
import pytest

from musetalk_agent.protocol.http import SessionState
from tests.fakes.stage import Stage, stage
from tests.waiting import NEVER_S, until


def claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))))


async def test_the_answer_of_start_has_the_contracts_shape(running: Stage) -> None:
    started = await running.start(room="demo", avatar_id="demo", fps=30, width=640, height=360, speaker="agent-7")
    session_id = started["session_id"]
    assert session_id.startswith("ses_") and session_id[4:].isalnum()
    assert started["state"] == "ready" and started["room"] == "demo"
    assert started["avatar_identity"] == f"avatar-{session_id}"
    assert started["livekit_url"] == running.settings.livekit_url
    assert started["audio_url"].startswith(running.url.replace("http", "ws") + f"/audio?session_id={session_id}&token=")
    assert (started["engine"], started["fps"], started["width"], started["height"]) == ("warp", 30, 640, 360)
    assert started["avatar"]["avatar_id"] == "sha256:0123" and started["avatar"]["warnings"] == []
    lifetime = datetime.fromisoformat(started["expires_at"].replace("Z", "+00:00")) - datetime.now().astimezone()
    assert lifetime.total_seconds() == pytest.approx(6 * 3600, abs=5)
    asked = running.agent.only.request
    assert asked.avatar.avatar_id == "demo" and asked.picture.fps == 30 and asked.picture.width == 640
    assert running.rooms.rooms["demo"].sync_streams


async def test_the_viewers_token_can_watch_and_nothing_else(running: Stage) -> None:
    started = await running.start(room="demo")
    reported = claims(started["viewer_token"])
    assert reported["video"] == {
        "roomJoin": True,
        "room": "demo",
        "canSubscribe": True,
        "canPublish": False,
        "canPublishData": False,
    }
    assert reported["roomConfig"]["syncStreams"] is True
    assert reported["sub"] == started["viewer_identity"]


async def test_the_agents_token_publishes_as_an_agent(running: Stage) -> None:
    started = await running.start(room="demo", speaker="agent-7")
    reported = claims(running.agent.only.request.livekit_token)
    assert reported["kind"] == "agent" and reported["sub"] == started["avatar_identity"]
    deployment_id = running.app.state.context.journal.store.deployment_id
    assert reported["attributes"] == {"lk.publish_on_behalf": "agent-7", "avatar.deployment": deployment_id}
    assert reported["video"]["canPublishSources"] == ["camera", "microphone"]
    assert reported["video"]["canUpdateOwnMetadata"] is True and "roomAdmin" not in reported["video"]
    assert reported["roomConfig"]["syncStreams"] is True
    expires = datetime.fromisoformat(started["expires_at"].replace("Z", "+00:00")).timestamp()
    assert reported["exp"] == pytest.approx(expires, abs=2)


async def test_without_livekit_the_agent_is_reported_so(running: Stage) -> None:
    started = await running.start(connect_livekit=False)
    assert not running.agent.only.request.connect_livekit
    assert started["publisher"] == "null"
    await running.http.post(f"/session/{started['session_id']}/stop")
    assert running.rooms.removed == []


async def test_audio_url_follows_the_public_address() -> None:
    async with stage(public_url="https://avatars.example/base/") as running:
        started = await running.start()
        assert started["audio_url"].startswith("wss://avatars.example/base/audio?session_id=")


async def test_the_session_can_be_read_and_listed(running: Stage) -> None:
    started = await running.start(room="demo")
    session = (await running.http.get(f"/session/{started['session_id']}")).json()
    assert session["state"] == "ready" and session["room"] == "demo" and session["publisher"] == "livekit"
    assert session["viewers"] == 1 and session["error"] is None and session["last_audio_at"] is None
    assert session["playback"] == {"position_s": 0.0, "buffered_s": 0.0, "segments": 0}
    assert session["diagnosis"] == {"code": "no_audio", "message": "No audio came."}
    listed = (await running.http.get("/sessions")).json()["sessions"]
    assert [entry["session_id"] for entry in listed] == [started["session_id"]]


async def test_stop_is_the_same_any_number_of_times_also_at_once(running: Stage) -> None:
    started = await running.start(room="demo")
    path = f"/session/{started['session_id']}/stop"
    answers = await asyncio.gather(*(running.http.post(path) for _ in range(4)))
    answers.append(await running.http.post(path))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["state"] for answer in answers} == {"stopped"}
    assert running.agent.stopped == [started["session_id"]]
    assert running.rooms.removed == [("demo", started["avatar_identity"])]
    for call in ("interrupt", "speak"):
        answer = await running.http.post(f"/session/{started['session_id']}/{call}", json={"text": "hello"})
        assert (answer.status_code, answer.json()["code"]) == (409, "session_ended")
    assert (await running.http.get(f"/session/{started['session_id']}")).json()["end_reason"] == "stopped"


async def test_the_same_key_and_body_give_the_same_answer_also_at_once(running: Stage) -> None:
    running.agent.may_start.clear()
    body, headers = {"room": "r", "engine": "pattern"}, {"Idempotency-Key": "one"}
    call = lambda: running.http.post("/session/start", json=body, headers=headers)  # noqa: E731
    asked = [asyncio.create_task(call()) for _ in range(5)]
    await until(lambda: running.agent.starts == 1)
    running.agent.may_start.set()
    answers = await asyncio.gather(*asked)
    answers.append(await running.http.post("/session/start", json=body, headers=headers))
    assert len({answer.text for answer in answers}) == 1 and answers[0].status_code == 200
    assert len(running.agent.sessions) == 1
    other = await running.http.post("/session/start", json={**body, "room": "other"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    for key in ("", "k" * 257):
        wrong = await running.http.post("/session/start", json=body, headers={"Idempotency-Key": key})
        assert wrong.status_code == 422


async def test_failures_are_not_remembered_for_a_key(running: Stage) -> None:
    body, headers = {"room": "r", "engine": "pattern"}, {"Idempotency-Key": "one"}
    running.rooms.broken = True
    assert (await running.http.post("/session/start", json=body, headers=headers)).status_code == 503
    running.rooms.broken = False
    assert (await running.http.post("/session/start", json=body, headers=headers)).status_code == 200
    assert (await running.http.get("/sessions")).json()["sessions"][0]["state"] == "ready"
    assert len((await running.http.get("/sessions")).json()["sessions"]) == 1


async def test_several_sessions_may_share_a_room(running: Stage) -> None:
    one, two = await running.start(room="shared"), await running.start(room="shared")
    assert one["avatar_identity"] != two["avatar_identity"]


async def test_a_session_is_starting_until_it_is_ready_and_can_be_stopped_then(running: Stage) -> None:
    running.agent.may_start.clear()
    starting = asyncio.create_task(running.http.post("/session/start", json={"room": "r", "engine": "pattern"}))
    await until(lambda: running.agent.starts == 1)
    (listed,) = (await running.http.get("/sessions")).json()["sessions"]
    assert listed["state"] == "starting"
    early = await running.http.post(f"/session/{listed['session_id']}/interrupt")
    assert (early.status_code, early.json()["code"]) == (409, "session_conflict")
    stopped = await running.http.post(f"/session/{listed['session_id']}/stop")
    assert stopped.json()["state"] == "stopped"
    answer = await starting
    assert (answer.status_code, answer.json()["code"]) == (409, "session_ended")
    running.agent.may_start.set()


async def test_the_agents_word_about_the_session_is_reported(running: Stage) -> None:
    started = await running.start()
    running.agent.only.viewers = 3

    async def reported() -> dict[str, Any]:
        return dict((await running.http.get(f"/session/{started['session_id']}")).json())

    async def viewers_come() -> bool:
        return bool((await reported())["viewers"] == 3)

    async def fails() -> dict[str, Any] | None:
        session = await reported()
        return session if session["state"] == "failed" else None

    await until(viewers_come)
    running.agent.only.state = SessionState.FAILED
    running.agent.only.error = {"code": "livekit_unavailable", "detail": "The room was closed.", "status": 503}
    await running.agent.only.sockets[0].close(1001)
    session = await until(fails)
    assert session is not None
    assert session["error"]["code"] == "livekit_unavailable"
    assert session["error"]["detail"] == "The room was closed."


async def leave(running: Stage, headers: dict[str, str]) -> None:
    """Asks for a start and closes the connection once the agent is at it."""
    async with httpx.AsyncClient(
        base_url=running.url, headers=running.http.headers, trust_env=False, timeout=NEVER_S
    ) as caller:
        asked = running.agent.starts
        starting = asyncio.create_task(
            caller.post("/session/start", json={"room": "r", "engine": "pattern"}, headers=headers, timeout=NEVER_S)
        )
        running.agent.may_start.clear()
        await until(lambda: running.agent.starts > asked)
        starting.cancel()
        await asyncio.wait({starting})
    running.agent.may_start.set()


async def test_a_caller_that_leaves_during_a_start_leaves_nothing_behind(running: Stage) -> None:
    await leave(running, {})
    await until(lambda: len(running.agent.stopped) == 1)
    assert running.agent.sessions == {}
    assert (await running.http.get("/sessions")).json()["sessions"] == []


async def test_a_caller_that_comes_back_with_its_key_gets_its_session(running: Stage) -> None:
    await leave(running, {"Idempotency-Key": "mine"})
    body = {"room": "r", "engine": "pattern"}
    answer = await running.http.post("/session/start", json=body, headers={"Idempotency-Key": "mine"})
    assert answer.status_code == 200
    assert set(running.agent.sessions) == {answer.json()["session_id"]} and running.agent.starts == 1


async def test_a_caller_that_does_not_come_back_with_its_key_leaves_nothing_either(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.routes.idempotency.CLAIM_S", 0.5)
    await leave(running, {"Idempotency-Key": "mine"})
    await until(lambda: len(running.agent.stopped) == 1)
    assert running.agent.sessions == {}


async def test_a_key_never_answers_ready_for_a_session_that_has_ended(running: Stage) -> None:
    body, headers = {"room": "r", "engine": "pattern"}, {"Idempotency-Key": "one"}
    started = (await running.http.post("/session/start", json=body, headers=headers)).json()
    await running.http.post(f"/session/{started['session_id']}/stop")
    again = await running.http.post("/session/start", json=body, headers=headers)
    assert (again.status_code, again.json()["code"]) == (409, "session_ended")
    registry = running.app.state.context.sessions.registry
    registry.forget(registry.get(started["session_id"]))  # as after ten minutes
    await running.app.state.context.journal.store.delete(started["session_id"])
    fresh = await running.http.post("/session/start", json=body, headers=headers)
    assert fresh.status_code == 200 and fresh.json()["session_id"] != started["session_id"]
