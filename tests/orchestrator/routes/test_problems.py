"""Every refusal is problem+json with a stable code, and names what was wrong."""

from __future__ import annotations

from typing import Any

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from tests.fakes.stage import Stage, stage

AVATAR = {"avatar_id": "demo"}


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "invalid_request", "room"),
        ({"room": ""}, "invalid_request", "room"),
        ({"room": 7}, "invalid_request", "room"),
        ({"room": "r" * 257, **AVATAR}, "invalid_request", "room"),
        ({"room": "r"}, "avatar_missing", "frames_zip_url"),
        ({"room": "r", "frames_zip_url": "", "idle_video_url": None}, "avatar_missing", "frames_zip_url"),
        ({"room": "r", "engine": "warp"}, "avatar_missing", "frames_zip_url"),
        ({"room": "r", **AVATAR, "fps": 14}, "invalid_request", "fps"),
        ({"room": "r", **AVATAR, "fps": 61}, "invalid_request", "fps"),
        ({"room": "r", **AVATAR, "fps": "fast"}, "invalid_request", "fps"),
        ({"room": "r", **AVATAR, "width": 512}, "invalid_request", "height"),
        ({"room": "r", **AVATAR, "height": 512}, "invalid_request", "width"),
        ({"room": "r", **AVATAR, "width": 1921, "height": 720}, "invalid_request", "width"),
        ({"room": "r", **AVATAR, "width": 1920, "height": 1082}, "invalid_request", "height"),
        ({"room": "r", **AVATAR, "colour": "red"}, "invalid_request", "colour"),
        ([], "invalid_request", None),
        ("{not json", "invalid_request", None),
    ],
)
async def test_a_wrong_start_names_its_field(running: Stage, body: Any, code: str, field: str | None) -> None:
    if isinstance(body, str):
        headers = {"Content-Type": "application/json"}
        answer = await running.http.post("/session/start", content=body, headers=headers)
    else:
        answer = await running.http.post("/session/start", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem.get("field")) == (422, code, field)
    assert problem["status"] == 422 and problem["title"] and problem["type"] == "about:blank"
    assert (field or "") in problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert running.agent.sessions == {}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/session/none", None, 404, "session_not_found"),
        ("POST", "/session/none/stop", None, 404, "session_not_found"),
        ("POST", "/session/none/interrupt", None, 404, "session_not_found"),
        ("POST", "/session/none/speak", {"text": "hello"}, 404, "session_not_found"),
        ("GET", "/no/such/path", None, 404, "not_found"),
        ("POST", "/no/such/path", {}, 404, "not_found"),
        ("DELETE", "/sessions", None, 405, "method_not_allowed"),
        ("GET", "/audio", None, 404, "not_found"),
        ("POST", "/token", {"identity": "me"}, 422, "invalid_request"),
        ("POST", "/token", {"room": "r"}, 422, "invalid_request"),
        ("POST", "/token", {"room": "r", "identity": "avatar-ses_8JkQ"}, 422, "invalid_request"),
        ("POST", "/token", {"room": "r", "identity": "me", "ttl_s": 0}, 422, "invalid_request"),
        ("POST", "/token", {"room": "r", "identity": "me", "admin": True}, 422, "invalid_request"),
        ("POST", "/token", {"room": "r", "identity": "x" * 300_000}, 413, "message_too_large"),
    ],
)
async def test_every_error_is_reported_alike(
    running: Stage, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = await running.http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


async def test_the_agents_errors_are_passed_on_unchanged(running: Stage) -> None:
    running.agent.start_error = ProblemError(
        ErrorCode.NO_FACE_IN_AVATAR, "Frames 3, 4, 5 show no face.", field="frames_zip_url", limit=50, value=3
    )
    answer = await running.http.post("/session/start", json={"room": "r", **AVATAR})
    problem = answer.json()
    assert answer.status_code == 422
    assert problem["code"] == "no_face_in_avatar" and problem["detail"] == "Frames 3, 4, 5 show no face."
    assert (problem["field"], problem["limit"], problem["value"]) == ("frames_zip_url", 50, 3)


async def test_a_full_agent_is_at_capacity_with_retry_after(running: Stage) -> None:
    running.agent.sessions_max = 1
    await running.start()
    answer = await running.http.post("/session/start", json={"room": "r", **AVATAR})
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "at_capacity", "5")


async def test_an_agent_that_refuses_our_key_is_not_the_clients_fault() -> None:
    async with stage(agent_api_key="another") as running:
        answer = await running.http.post("/session/start", json={"room": "r", **AVATAR})
        assert (answer.status_code, answer.json()["code"]) == (503, "agent_unavailable")
        assert "refuses our key" in answer.json()["detail"]


async def test_livekit_out_of_reach_is_reported(running: Stage) -> None:
    running.rooms.broken = True
    for path, body in (("/token", {"room": "r", "identity": "me"}), ("/session/start", {"room": "r", **AVATAR})):
        answer = await running.http.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "livekit_unavailable")
    assert running.agent.sessions == {}


async def test_what_breaks_inside_is_answered_without_internals(
    running: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(running.app.state.context.voices, "names", broken)
    answer = await running.http.get("/voices")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "a secret of ours" in caplog.text


async def test_a_body_without_a_length_is_bounded_too(running: Stage) -> None:
    async def endless() -> Any:
        for _ in range(64):
            yield b" " * 16384

    answer = await running.http.post("/token", content=endless())
    assert answer.status_code in (413, 422)
    assert answer.headers["content-type"] == "application/problem+json"
