"""What keys of each scope may do, on every route there is."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from livekit import api

from musetalk_agent.protocol import throttle
from orchestrator.app import OPEN_PATHS
from orchestrator.routes.auth import RULES, rule
from tests.fakes.stage import API_KEY, LIVEKIT_SECRET, Stage, stage
from tests.waiting import until

STARTER, SECOND, VIEWER = "starter-key-of-the-tests", "second-key-of-the-tests", "viewer-key-of-the-tests"
LIMITED = "limited-key-of-the-tests"
KEYS = [
    {"name": "shop", "scope": "starter", "key": STARTER},
    {"name": "club", "scope": "starter", "key": SECOND},
    {"name": "tv", "scope": "viewer", "key": VIEWER},
    {"name": "small", "scope": "starter", "key": LIMITED, "max_sessions": 1, "starts_per_minute": 2},
    {"name": "calm", "scope": "viewer", "key": "calm-key-of-the-tests", "requests_per_second": 1},
]
VIEWERS = {
    ("POST", "/token"),
    ("GET", "/voices"),
    ("GET", "/session/{session_id}"),
    ("GET", "/session/{session_id}/events"),
    ("GET", "/session/{session_id}/messages"),
    ("GET", "/v1/models"),
    ("GET", "/session/{session_id}/recording"),
    ("GET", "/session/{session_id}/recording.mp4"),
}
PAGES = {("POST", "/public/session")}
"""Takes public tokens only: `test_public_tokens.py`."""
OPERATORS = {("GET", "/metrics"), ("GET", "/debug/audio"), ("GET", "/debug/musetalk")}
BODY = {"room": "stage", "engine": "pattern"}


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Stage]:
    """An orchestrator with keys of every scope, and an audit log."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(KEYS))
    async with stage(orchestrator_keys_file=keys, audit_log=tmp_path / "audit.log") as running:
        yield running


def by(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ask(running: Stage, key: str, method: str, path: str, **options: Any) -> httpx.Response:
    return await running.http.request(method, path, headers=by(key), **options)


async def start(running: Stage, key: str) -> str:
    answer = await ask(running, key, "POST", "/session/start", json=BODY)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["session_id"])


def listed(running: Stage) -> set[tuple[str, str]]:
    paths = running.app.openapi()["paths"]
    return {(m.upper(), path) for path, methods in paths.items() for m in methods if path not in OPEN_PATHS}


async def test_every_route_has_the_scope_it_should(shared: Stage) -> None:
    routes = listed(shared)
    assert VIEWERS | OPERATORS <= routes and set(RULES) <= routes
    for method, path in routes - PAGES:
        named = re.sub(r"{\w+}", "ses_none", path)
        for key, scope, allowed in (
            (VIEWER, "viewer", (method, path) in VIEWERS),
            (STARTER, "starter", (method, path) not in OPERATORS),
        ):
            answer = await ask(shared, key, method, named, content=b"{" if method == "POST" else None)
            if allowed:
                assert answer.status_code not in (401, 403), (method, path, scope)
                continue
            problem = answer.json()
            assert (answer.status_code, problem["code"], problem["value"]) == (403, "forbidden", scope), (method, path)
            assert problem["limit"] in problem["detail"] and problem["limit"] in ("starter", "operator")
    assert shared.agent.sessions == {}


async def test_what_is_not_listed_is_for_operators(shared: Stage) -> None:
    for key, status in ((VIEWER, 403), (STARTER, 403), (API_KEY, 404)):
        assert (await ask(shared, key, "POST", "/no/such/path")).status_code == status
    assert rule("POST", "/session/ses_a/erase")[0].scope == "operator"
    assert rule("POST", "/session/start")[1] is None and rule("GET", "/session/start")[1] == "start"
    assert rule("POST", "/session/ses_a/stop\n")[0].scope == "operator"


async def test_a_key_that_only_watches_gets_no_token_to_be_heard(shared: Stage) -> None:
    body = {"room": "r", "identity": "anna", "publish": ["microphone"]}
    refused = await ask(shared, VIEWER, "POST", "/token", json=body)
    assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (403, "forbidden", "starter")
    assert (await ask(shared, VIEWER, "POST", "/token", json={**body, "publish": []})).status_code == 200
    assert (await ask(shared, STARTER, "POST", "/token", json=body)).json()["identity"] == "shop/anna"


async def test_a_starter_sees_its_own_sessions_only(shared: Stage) -> None:
    mine, theirs = await start(shared, STARTER), await start(shared, SECOND)
    for key, seen in ((STARTER, [mine]), (SECOND, [theirs]), (API_KEY, [mine, theirs])):
        sessions = (await ask(shared, key, "GET", "/sessions")).json()["sessions"]
        assert [each["session_id"] for each in sessions] == seen
    unknown = (await ask(shared, STARTER, "GET", "/session/ses_none")).json()
    for method, path in (
        ("GET", ""),
        ("GET", "/events"),
        ("POST", "/stop"),
        ("POST", "/interrupt"),
        ("POST", "/speak"),
        ("POST", "/publisher"),
    ):
        body = {"json": {"text": "hello"}} if path == "/speak" else {}
        answer = await ask(shared, STARTER, method, f"/session/{theirs}{path}", **body)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (404, "session_not_found"), path
        assert problem["detail"] == unknown["detail"].replace("ses_none", theirs)
    assert (await ask(shared, VIEWER, "GET", f"/session/{theirs}")).status_code == 200
    assert (await ask(shared, API_KEY, "POST", f"/session/{theirs}/stop")).status_code == 200
    assert (await ask(shared, STARTER, "POST", f"/session/{mine}/stop")).json()["state"] == "stopped"


async def test_a_starter_sees_the_funnel_of_its_own_session_and_nothing_is_audited(shared: Stage) -> None:
    mine, theirs = await start(shared, STARTER), await start(shared, SECOND)
    for _ in range(3):  # as the page does, each second
        reported = (await ask(shared, STARTER, "GET", f"/session/{mine}")).json()
    assert [(stage["stage"], stage["count"]) for stage in reported["funnel"]][:3] == [
        ("audio_in", 0),
        ("samples", 1),
        ("features", 2),
    ]
    assert reported["funnel"][6] == {"stage": "acknowledged", "count": 6, "last_at": None, "last_error": None}
    assert (await ask(shared, STARTER, "GET", f"/session/{theirs}")).status_code == 404
    assert "funnel" not in (await ask(shared, STARTER, "GET", "/sessions")).json()["sessions"][0]
    assert shared.settings.audit_log is not None
    await ask(shared, STARTER, "POST", f"/session/{mine}/stop")
    path = shared.settings.audit_log
    await until(lambda: audited(path) and audited(path)[-1]["action"] == "stop")
    lines = audited(path)
    assert [line["action"] for line in lines] == ["start", "start", "stop"]


def audited(path: Path) -> list[dict[str, Any]]:
    """The lines of the audit log so far."""
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_an_idempotency_key_is_its_callers(shared: Stage) -> None:
    answers = [
        await shared.http.post("/session/start", json=BODY, headers={**by(key), "Idempotency-Key": "same"})
        for key in (STARTER, SECOND, STARTER)
    ]
    first, second, again = (answer.json()["session_id"] for answer in answers)
    assert first == again != second


async def test_quotas_are_reported_with_limit_and_retry_after(shared: Stage) -> None:
    session_id = await start(shared, LIMITED)
    answer = await ask(shared, LIMITED, "POST", "/session/start", json=BODY)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["limit"]) == (429, "quota_exceeded", 1)
    assert int(answer.headers["retry-after"]) > 0
    await ask(shared, LIMITED, "POST", f"/session/{session_id}/stop")
    second = await start(shared, LIMITED)
    await ask(shared, LIMITED, "POST", f"/session/{second}/stop")
    answer = await ask(shared, LIMITED, "POST", "/session/start", json=BODY)
    assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (429, "rate_limited", 2)
    assert int(answer.headers["retry-after"]) > 0
    assert (await ask(shared, STARTER, "POST", "/session/start", json=BODY)).status_code == 200


async def test_starts_at_once_do_not_pass_the_quota(shared: Stage) -> None:
    shared.agent.may_start.clear()
    asked = [asyncio.create_task(ask(shared, LIMITED, "POST", "/session/start", json=BODY)) for _ in range(5)]
    await until(lambda: sum(each.done() for each in asked) == 4)
    shared.agent.may_start.set()
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status_code for answer in answers) == [200, 429, 429, 429, 429]


async def test_requests_too_fast_are_refused(shared: Stage) -> None:
    for _ in range(2):
        assert (await ask(shared, "calm-key-of-the-tests", "GET", "/voices")).status_code == 200

    async def refusal() -> httpx.Response | None:
        answer = await ask(shared, "calm-key-of-the-tests", "GET", "/voices")
        return answer if answer.status_code == 429 else None

    refused = await until(refusal)
    assert refused is not None
    assert refused.json()["code"] == "rate_limited" and refused.headers["retry-after"] == "1"


async def test_wrong_keys_are_refused_after_some(shared: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "FAILURES_PER_S", 1e-3)  # else a slow machine guesses slowly enough
    assert (await ask(shared, VIEWER, "GET", "/voices")).status_code == 200
    answers = [await ask(shared, f"guess-{number}", "GET", "/voices") for number in range(60)]
    codes = [answer.status_code for answer in answers]
    assert codes[:30] == [401] * 30 and set(codes) == {401, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "rate_limited" and int(refused.headers["retry-after"]) > 0
    assert (await ask(shared, VIEWER, "GET", "/voices")).status_code == 200  # known from before
    assert (await shared.http.get("/voices", headers={"Authorization": ""})).status_code == 401  # no key is no guess


async def test_a_key_that_is_taken_out_stops_to_count(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(KEYS))
    async with stage(orchestrator_keys_file=keys) as running:
        assert (await ask(running, STARTER, "GET", "/sessions")).status_code == 200
        keys.write_text(json.dumps(KEYS[1:]))

        async def refused() -> bool:
            return (await ask(running, STARTER, "GET", "/sessions")).status_code == 401

        await until(refused)
        assert (await ask(running, SECOND, "GET", "/sessions")).status_code == 200


async def test_the_audit_log_tells_who_did_what_and_nothing_of_persons(shared: Stage) -> None:
    session_id = await start(shared, STARTER)
    headers = by(STARTER)
    await shared.http.post("/token", json={"room": "the-room", "identity": "jane-doe"}, headers=headers)
    await shared.http.post(f"/session/{session_id}/speak", json={"text": "the words"}, headers=headers)
    await ask(shared, SECOND, "POST", f"/session/{session_id}/stop")
    await ask(shared, VIEWER, "POST", "/session/start", json=BODY)
    await ask(shared, "no-such-key", "POST", "/session/start", json=BODY)
    await ask(shared, STARTER, "POST", "/session/jane-doe/stop")
    await ask(shared, STARTER, "GET", "/sessions")
    await ask(shared, STARTER, "POST", f"/session/{session_id}/stop")
    path = shared.settings.audit_log
    assert path is not None
    await until(lambda: audited(path) and (audited(path)[-1]["action"], audited(path)[-1]["outcome"]) == ("stop", "ok"))
    lines = audited(path)
    for line in lines:
        assert line.pop("at").endswith("Z")
    mine = {"key": "shop", "session_id": session_id}
    assert lines == [
        {**mine, "action": "start", "outcome": "ok"},
        {"key": "shop", "action": "token", "outcome": "ok"},
        {**mine, "action": "speak", "outcome": "failed", "code": "voice_unavailable"},
        {"key": "club", "action": "stop", "session_id": session_id, "outcome": "failed", "code": "session_not_found"},
        {"key": "tv", "action": "start", "outcome": "denied", "code": "forbidden"},
        {"key": "-", "action": "start", "outcome": "denied", "code": "unauthorized"},
        {"key": "shop", "action": "stop", "outcome": "failed", "code": "session_not_found"},
        {**mine, "action": "stop", "outcome": "ok"},
    ]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("key", "name"), [(VIEWER, "tv"), (STARTER, "shop")])
async def test_a_key_gives_identities_that_no_other_participant_has(shared: Stage, key: str, name: str) -> None:
    """LiveKit puts out of a room whoever has the identity of the one that joins, as the speaker of a data stream."""
    for asked in ("bot", "shop/bot", "club/bot", "tv/bot"):
        answer = (await ask(shared, key, "POST", "/token", json={"room": "r", "identity": asked})).json()
        wanted = asked if asked.startswith(f"{name}/") else f"{name}/{asked}"
        assert answer["identity"] == wanted
        reported = api.TokenVerifier("devkey", LIVEKIT_SECRET).verify(answer["token"])
        assert reported.identity == wanted and reported.video is not None and reported.video.room == "r"
    mine = await ask(shared, API_KEY, "POST", "/token", json={"room": "r", "identity": "bot"})
    assert mine.json()["identity"] == "bot"
    long = await ask(shared, key, "POST", "/token", json={"room": "r", "identity": "x" * 256})
    assert (long.status_code, long.json()["field"]) == (422, "identity")
    ours = await ask(shared, key, "POST", "/token", json={"room": "r", "identity": "avatar-ses_1"})
    assert ours.status_code == 422
