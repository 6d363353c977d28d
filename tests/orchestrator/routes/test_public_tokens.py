"""Public tokens at the HTTP surface: what a page may do with one, from where, how often and how long."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from musetalk_agent.protocol import throttle
from orchestrator.app import OPEN_PATHS
from orchestrator.conversation import conversations
from orchestrator.routes.public_sessions import Preset, PublicTokenRequest
from tests.fakes.stage import LIVEKIT_SECRET, Stage, stage
from tests.orchestrator.routes.test_conversation_routes import MODEL, SCRIPT
from tests.servers.redis import redis_server
from tests.waiting import until

SHOP = "https://shop.example"
STARTER, SECOND, VIEWER = "starter-key-of-the-tests", "second-key-of-the-tests", "viewer-key-of-the-tests"
KEYS = [
    {"name": "shop", "scope": "starter", "key": STARTER, "max_sessions": 3},
    {"name": "club", "scope": "starter", "key": SECOND},
    {"name": "tv", "scope": "viewer", "key": VIEWER},
]
PAGES = {
    ("POST", "/public/session"),
    ("GET", "/session/{session_id}"),
    ("GET", "/session/{session_id}/events"),
    ("GET", "/session/{session_id}/messages"),
    ("POST", "/session/{session_id}/chat"),
    ("POST", "/session/{session_id}/stop"),
}
MANY = {"sessions": 10, "starts_per_minute": 100}


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """An orchestrator with keys of every scope, a scripted conversation worker, and an audit log."""
    monkeypatch.setattr(conversations, "WORKER", (str(SCRIPT),))
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(KEYS))
    async with stage(
        orchestrator_keys_file=keys,
        audit_log=tmp_path / "audit.log",
        conversation_python=sys.executable,
        llm_base_url=MODEL,
        stt_base_url=MODEL,
    ) as running:
        yield running


async def mint(running: Stage, key: str | None = None, **fields: Any) -> dict[str, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"origins": [SHOP], "engine": "pattern", **fields}
    answer = await running.http.post("/public-tokens", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def ask(
    running: Stage, token: str, method: str, path: str, origin: str | None = SHOP, **options: Any
) -> httpx.Response:
    """As a browser does for a page of `origin`."""
    headers = {"Authorization": f"Bearer {token}", **({"Origin": origin} if origin else {}), **options.pop("more", {})}
    return await running.http.request(method, path, headers=headers, **options)


async def start(running: Stage, token: str, **body: Any) -> dict[str, Any]:
    answer = await ask(running, token, "POST", "/public/session", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def grants(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, LIVEKIT_SECRET, algorithms=["HS256"])["video"])


async def test_a_page_starts_its_session_chats_reads_and_stops(shop: Stage) -> None:
    made = await mint(shop, conversation={"instructions": "Sell shoes."}, minutes=5, session_minutes=2)
    token = made["token"]
    assert re.fullmatch(r"mtp_[0-9a-f]{32}[A-Za-z0-9_-]{43}", token)
    before = time.time()
    started = await start(shop, token)
    session_id = started["session_id"]
    assert started["conversation"] == {} and "audio_url" not in started and "engine" not in started
    assert re.fullmatch(r"public-[A-Za-z0-9_-]{22}", started["room"])
    claims = jwt.decode(started["viewer_token"], LIVEKIT_SECRET, algorithms=["HS256"])
    assert claims["video"]["room"] == started["room"] and claims["video"]["canPublishSources"] == ["microphone"]
    assert claims["exp"] <= before + 2 * 60 + 5  # not longer than the session
    path = f"/session/{session_id}"
    answer = await ask(shop, token, "POST", f"{path}/chat", json={"text": "Hello?"})
    assert answer.status_code == 202 and answer.json()["message_id"].startswith("msg_")

    async def heard() -> bool:
        return bool((await shop.http.get(f"{path}/messages")).json()["messages"])

    await until(heard)
    assert (await ask(shop, token, "GET", f"{path}/messages")).json()["messages"][0]["text"] == "Hello?"
    view = (await ask(shop, token, "GET", path)).json()
    assert view["state"] == "ready" and not view.keys() & {"engine", "diagnosis", "funnel", "transport", "error"}
    bus = shop.app.state.context.events
    secret = {"detail": "http://10.0.0.5/v1 refuses", "message": "http://10.0.0.5/v1 refuses"}
    bus.publish(session_id, "warning", {"code": "conversation_provider", "part": "llm", **secret})
    bus.publish(session_id, "error", {"code": "tts_failed", **secret})
    bus.publish(session_id, "tool.started", {"name": "stock_of_shoes", "call_id": "call_1"})
    assert (await ask(shop, token, "POST", f"{path}/stop")).json()["state"] == "stopped"
    events = await ask(shop, token, "GET", f"{path}/events")
    assert events.headers["content-type"].startswith("text/event-stream") and '"reason":"stopped"' in events.text
    assert '"data":{"code":"conversation_provider","part":"llm"}' in events.text
    assert '"data":{"code":"tts_failed"}' in events.text and "10.0.0.5" not in events.text
    assert "stock_of_shoes" not in events.text
    assert "10.0.0.5" in (await shop.http.get(f"{path}/events")).text  # a key's holder reads all of it
    seen = (await shop.http.get(f"/public-tokens/{made['token_id']}")).json()
    assert (seen["sessions_running"], seen["starts"], seen["origins"]) == (0, 1, [SHOP])
    assert 0 < seen["minutes_used"] < 5 and "token" not in seen
    assert shop.rooms.deleted == [started["room"]]


async def test_a_public_token_opens_nothing_else(shop: Stage) -> None:
    token = (await mint(shop, **MANY))["token"]
    paths = shop.app.openapi()["paths"]
    routes = {(m.upper(), path) for path, methods in paths.items() for m in methods if path not in OPEN_PATHS}
    assert PAGES <= routes
    for method, path in routes:
        answer = await ask(shop, token, method, re.sub(r"{\w+}", "ses_none", path), content=b"{")
        if (method, path) in PAGES:
            assert answer.status_code not in (401, 403), (method, path)
        else:
            assert refusal(answer) == (403, "forbidden"), (method, path)
            assert answer.json()["value"] == "public"
    for path in ("/no/such/path", "/session/ses_none/erase"):
        assert refusal(await ask(shop, token, "POST", path)) == (403, "forbidden")
    assert shop.agent.sessions == {}


async def test_a_page_chooses_among_what_the_token_names_and_nothing_more(shop: Stage) -> None:
    token = (await mint(shop, avatar_id=["demo", "sha256:other"], **MANY))["token"]
    for avatar, given in ((None, "demo"), ("sha256:other", "sha256:other")):
        started = await start(shop, token, **({"avatar_id": avatar} if avatar else {}))
        asked = shop.agent.sessions[started["session_id"]].request
        assert asked.avatar.avatar_id == given
    assert refusal(await ask(shop, token, "POST", "/public/session", json={"avatar_id": "sha256:x"})) == (
        403,
        "forbidden",
    )
    for more in (
        {"room": "mine"},
        {"idle_video_url": "https://evil.example/a.mp4"},
        {"conversation": {"instructions": "Swear."}},
        {"engine": "musetalk"},
        {"webhook_url": "https://evil.example"},
        {"minutes": 1000},
    ):
        answer = await ask(shop, token, "POST", "/public/session", json=more)
        assert refusal(answer) == (422, "invalid_request") and answer.json()["field"] == next(iter(more))


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "https://evil.example",
        "http://shop.example",
        "https://shop.example:8443",
        "https://shop.example.evil.example",
        "https://www.shop.example",
        "https://SHOP.example",
        "https://shop.example/",
        "https://shop.example, https://evil.example",
        "",
    ],
)
async def test_only_pages_of_its_origins_use_a_token(shop: Stage, origin: str | None) -> None:
    token = (await mint(shop))["token"]
    session_id = (await start(shop, token))["session_id"]
    for method, path in (
        ("POST", "/public/session"),
        ("GET", f"/session/{session_id}/events"),
        ("POST", f"/session/{session_id}/chat"),
        ("POST", f"/session/{session_id}/stop"),
    ):
        answer = await ask(shop, token, method, path, origin, json={} if method == "POST" else None)
        assert refusal(answer) == (403, "origin_forbidden"), path
        readable = (origin or None) if path == "/public/session" else None  # its page learns why it cannot begin
        assert answer.headers.get("access-control-allow-origin") == readable
    assert len(shop.agent.sessions) == 1


async def test_a_page_on_our_own_host_needs_no_origin_where_browsers_send_none(shop: Stage) -> None:
    token = (await mint(shop, origins=[shop.url]))["token"]
    started = await ask(shop, token, "POST", "/public/session", shop.url, json={})
    path = f"/session/{started.json()['session_id']}"
    assert (await ask(shop, token, "GET", path, None, more={"Sec-Fetch-Site": "same-origin"})).status_code == 200
    for site in ("cross-site", "same-site", "none"):
        answer = await ask(shop, token, "GET", path, None, more={"Sec-Fetch-Site": site})
        assert refusal(answer) == (403, "origin_forbidden")
    elsewhere = (await mint(shop))["token"]
    answer = await ask(shop, elsewhere, "GET", path, None, more={"Sec-Fetch-Site": "same-origin"})
    assert refusal(answer) == (403, "origin_forbidden")


async def preflight(running: Stage, path: str, origin: str, method: str = "POST") -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    return await running.http.options(path, headers=headers)


@pytest.mark.parametrize("settings", [{}, {"cors_origins": ["https://app.example"]}])
async def test_browsers_are_answered_for_the_origins_of_tokens_only(settings: dict[str, Any]) -> None:
    async with stage(**settings) as running:
        assert "access-control-allow-origin" not in (await preflight(running, "/session/ses_a/events", SHOP)).headers
        token = (await mint(running))["token"]
        for path, method in (
            ("/public/session", "POST"),
            ("/session/ses_a/events", "GET"),
            ("/session/ses_a/chat", "POST"),
        ):
            answer = await preflight(running, path, SHOP, method)
            assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == SHOP
            assert answer.headers["access-control-allow-methods"] == method and "Origin" in answer.headers["vary"]
            allowed = answer.headers["access-control-allow-headers"].lower()
            assert {"authorization", "content-type", "idempotency-key", "last-event-id"} == set(allowed.split(", "))
            stranger = await preflight(running, path, "https://evil.example", method)
            readable = (
                "https://evil.example" if path == "/public/session" else None
            )  # its page learns why it cannot begin
            assert stranger.headers.get("access-control-allow-origin") == readable
        for path in ("/session/start", "/sessions", "/public-tokens", "/session/ses_a/speak", "/token"):
            assert "access-control-allow-origin" not in (await preflight(running, path, SHOP)).headers
        answer = await ask(running, token, "POST", "/public/session", json={})
        assert answer.headers["access-control-allow-origin"] == SHOP and "Origin" in answer.headers["vary"]
        assert "Retry-After" in answer.headers["access-control-expose-headers"].split(", ")
        assert "access-control-allow-credentials" not in answer.headers
        refused = await ask(running, token, "POST", "/public/session", json={})
        assert refused.status_code == 429 and refused.headers["access-control-allow-origin"] == SHOP


async def test_the_page_modules_may_be_imported_from_anywhere(shop: Stage) -> None:
    for path in ("/avatar.js", "/vendor/livekit-client.esm.js"):
        assert (await shop.http.get(path, headers={"Origin": SHOP})).headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in (await shop.http.get("/", headers={"Origin": SHOP})).headers


async def test_a_token_sees_its_own_sessions_only(shop: Stage) -> None:
    first, second = (await mint(shop, **MANY))["token"], (await mint(shop, **MANY))["token"]
    theirs, keys = (await start(shop, second))["session_id"], (await shop.start())["session_id"]
    for session_id in (theirs, keys, "ses_none"):
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/stop"), ("POST", "/chat")):
            answer = await ask(
                shop, first, method, f"/session/{session_id}{path}", json={"text": "x"} if path == "/chat" else None
            )
            assert refusal(answer) == (404, "session_not_found"), path
    assert (await ask(shop, second, "GET", f"/session/{theirs}")).status_code == 200


async def test_sessions_belong_to_the_key_that_made_the_token(shop: Stage) -> None:
    made = await mint(shop, STARTER, **MANY)
    session_id = (await start(shop, made["token"]))["session_id"]
    for key, seen in ((STARTER, [session_id]), (SECOND, [])):
        listed = await shop.http.get("/sessions", headers={"Authorization": f"Bearer {key}"})
        assert [each["session_id"] for each in listed.json()["sessions"]] == seen
    await start(shop, made["token"])
    await start(shop, made["token"])
    answer = await ask(shop, made["token"], "POST", "/public/session", json={})  # the key's own max_sessions
    assert refusal(answer) == (429, "quota_exceeded") and answer.json()["limit"] == 3
    path = f"/public-tokens/{made['token_id']}"
    for method in ("GET", "DELETE"):
        answer = await shop.http.request(method, path, headers={"Authorization": f"Bearer {SECOND}"})
        assert refusal(answer) == (404, "not_found")
    assert (await shop.http.get(path)).json()["sessions_running"] == 3


async def test_who_may_make_tokens_and_of_what(shop: Stage) -> None:
    viewer = {"Authorization": f"Bearer {VIEWER}"}
    starter = {"Authorization": f"Bearer {STARTER}"}
    body = {"origins": [SHOP], "engine": "pattern"}
    assert refusal(await shop.http.post("/public-tokens", json=body, headers=viewer)) == (403, "forbidden")
    models = {**body, "conversation": {"llm": {"base_url": MODEL, "model": "m"}}}
    assert refusal(await shop.http.post("/public-tokens", json=models, headers=starter)) == (403, "forbidden")
    assert (await shop.http.post("/public-tokens", json=models)).status_code == 201
    for wrong, field in (
        ({"origins": []}, "origins"),
        ({"ttl_s": 86401}, "ttl_s"),
        ({"minutes": 0}, "minutes"),
        ({"sessions": 0}, "sessions"),
        ({"avatar_id": []}, "avatar_id"),
        ({"room": "mine"}, "room"),
        ({"rtmp_url": "rtmp://a/b"}, "rtmp_url"),
        ({"webhook_url": "https://hooks.example/x", "webhook_secret": "short"}, "webhook_secret"),
    ):
        answer = await shop.http.post("/public-tokens", json={**body, **wrong})
        assert refusal(answer) == (422, "invalid_request") and answer.json()["field"] == field, answer.text
    answer = await shop.http.post("/public-tokens", json={"origins": [SHOP]})
    assert refusal(answer) == (422, "avatar_missing")
    assert refusal(await shop.http.post("/public/session", json={})) == (403, "forbidden")


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "shop.example", "https://*.shop.example", "https://shop.example/", "https://Shop.example",
     "https://shop.example:443", "https://a@shop.example", "ftp://shop.example", "https://", "https://shop.example:x",
     "https://shöp.example", "https://shop.example?x", "https://shop.example#x", "https://" + "a" * 260],
)  # fmt: skip
async def test_what_no_browser_sends_is_no_origin(shop: Stage, origin: str) -> None:
    answer = await shop.http.post("/public-tokens", json={"origins": [SHOP, origin], "engine": "pattern"})
    assert refusal(answer) == (422, "invalid_request") and answer.json()["field"] == "origins"


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]:8000", SHOP])
async def test_what_browsers_send_is_one(shop: Stage, origin: str) -> None:
    token = (await mint(shop, origins=[origin]))["token"]
    assert (await ask(shop, token, "POST", "/public/session", origin, json={})).status_code == 200


async def test_a_forged_token_is_refused_and_guessing_is_slowed(shop: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "FAILURES_PER_S", 1e-3)
    token = (await mint(shop))["token"]
    await start(shop, token)
    answers = []
    for number in range(40):
        forged = token[:-8] + f"{number:08d}"  # two digits may be those that it has
        answers.append(await ask(shop, forged, "POST", "/public/session", json={}))
    codes = [refusal(answer) for answer in answers if answer.status_code != 200]
    assert codes[0] == (401, "unauthorized") and codes[-1] == (429, "rate_limited")
    assert all("access-control-allow-origin" not in answer.headers for answer in answers)
    assert (await ask(shop, token, "GET", "/session/ses_none")).status_code == 404  # known from before


async def test_sessions_at_a_time_and_starts_a_minute(shop: Stage) -> None:
    token = (await mint(shop, sessions=1, starts_per_minute=2))["token"]
    first = (await start(shop, token))["session_id"]
    answer = await ask(shop, token, "POST", "/public/session", json={})
    assert refusal(answer) == (429, "quota_exceeded") and answer.json()["limit"] == 1
    assert int(answer.headers["retry-after"]) > 0
    await ask(shop, token, "POST", f"/session/{first}/stop")
    second = (await start(shop, token))["session_id"]
    await ask(shop, token, "POST", f"/session/{second}/stop")
    answer = await ask(shop, token, "POST", "/public/session", json={})
    assert refusal(answer) == (429, "rate_limited") and answer.json()["limit"] == 2
    assert int(answer.headers["retry-after"]) > 0


async def test_a_session_ends_with_the_minutes_and_its_page_reads_why(shop: Stage) -> None:
    made = await mint(shop, minutes=0.2, **MANY)
    tokens = shop.app.state.context.public_tokens
    await tokens.pay(made["token_id"], "an earlier session", 10.5)
    session_id = (await start(shop, made["token"]))["session_id"]
    events = await ask(shop, made["token"], "GET", f"/session/{session_id}/events")  # until the session is over
    states = [json.loads(line[6:])["data"] for line in events.text.splitlines() if line.startswith("data: ")]
    assert states[-2:] == [
        {"state": "draining", "reason": "minutes_exhausted"},
        {"state": "stopped", "reason": "minutes_exhausted"},
    ]
    answer = await ask(shop, made["token"], "POST", "/public/session", json={})
    assert refusal(answer) == (403, "minutes_exhausted") and answer.json()["limit"] == 0.2
    assert (await shop.http.get(f"/public-tokens/{made['token_id']}")).json()["minutes_used"] == 0.2


async def test_a_revoked_token_ends_its_sessions_and_its_page_reads_why(shop: Stage) -> None:
    made = await mint(shop, STARTER, **MANY)
    session_id = (await start(shop, made["token"]))["session_id"]
    owner = {"Authorization": f"Bearer {STARTER}"}
    for _ in range(2):
        answer = await shop.http.delete(f"/public-tokens/{made['token_id']}", headers=owner)
        assert answer.status_code == 200 and answer.json()["revoked_at"] is not None
    status = (await shop.http.get(f"/session/{session_id}")).json()
    assert (status["state"], status["end_reason"]) == ("stopped", "token_revoked")
    for method, path in (("POST", "/public/session"), ("GET", f"/session/{session_id}")):
        answer = await ask(shop, made["token"], method, path, json={} if method == "POST" else None)
        assert refusal(answer) == (401, "unauthorized") and "revoked" in answer.json()["detail"]
        assert answer.headers["access-control-allow-origin"] == SHOP
        stranger = await ask(shop, made["token"], method, path, "https://evil.example", json={})
        assert stranger.status_code == 401 and "access-control-allow-origin" not in stranger.headers


async def test_an_expired_token_starts_nothing_and_serves_what_it_started(
    shop: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await mint(shop, ttl_s=60, conversation={}, **MANY))["token"]
    session_id = (await start(shop, token))["session_id"]
    monkeypatch.setattr(shop.app.state.context.public_tokens, "_clock", lambda: time.time() + 61)
    answer = await ask(shop, token, "POST", "/public/session", json={})
    assert refusal(answer) == (401, "unauthorized") and "expired" in answer.json()["detail"]
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert (await ask(shop, token, "POST", f"/session/{session_id}/chat", json={"text": "Hello?"})).status_code == 202
    assert (await ask(shop, token, "POST", f"/session/{session_id}/stop")).status_code == 200


async def test_with_its_makers_key_a_token_goes(shop: Stage) -> None:
    token = (await mint(shop, STARTER))["token"]
    keys = shop.settings.orchestrator_keys_file
    assert keys is not None
    keys.write_text(json.dumps(KEYS[1:]))

    async def refused() -> bool:
        answer = await ask(shop, token, "POST", "/public/session", json={"avatar_id": "x"})
        return refusal(answer) == (401, "unauthorized")

    await until(refused)


async def test_a_start_that_is_sent_again_is_one_start(shop: Stage) -> None:
    first, second = (await mint(shop, **MANY))["token"], (await mint(shop, **MANY))["token"]
    more = {"Idempotency-Key": "a-random-key-of-a-page"}
    answers = [
        await ask(shop, token, "POST", "/public/session", json={}, more=more) for token in (first, second, first)
    ]
    ids = [answer.json()["session_id"] for answer in answers]
    assert ids[0] == ids[2] != ids[1]
    answer = await ask(shop, first, "POST", "/public/session", json={}, more={"Idempotency-Key": "1"})
    assert refusal(answer) == (422, "invalid_request")


async def test_a_start_that_fails_takes_no_place_and_no_time(shop: Stage) -> None:
    made = await mint(shop, sessions=1, starts_per_minute=100)
    shop.rooms.broken = True
    assert refusal(await ask(shop, made["token"], "POST", "/public/session", json={})) == (503, "livekit_unavailable")
    shop.rooms.broken = False
    seen = (await shop.http.get(f"/public-tokens/{made['token_id']}")).json()
    assert (seen["sessions_running"], seen["minutes_used"]) == (0, 0)
    await start(shop, made["token"])


async def test_requests_of_a_token_are_bounded(shop: Stage) -> None:
    token = (await mint(shop, sessions=1))["token"]

    async def refused() -> bool:
        answer = await ask(shop, token, "GET", "/session/ses_none")
        return answer.status_code == 429 and answer.json()["code"] == "rate_limited"

    await until(refused)


async def test_the_audit_log_names_key_and_token_and_no_secret(shop: Stage) -> None:
    made = await mint(shop, STARTER)
    session_id = (await start(shop, made["token"]))["session_id"]
    await ask(shop, made["token"], "POST", "/session/start", json={})
    await ask(shop, made["token"], "POST", f"/session/{session_id}/stop", "https://evil.example")
    await ask(shop, made["token"], "POST", f"/session/{session_id}/stop")
    path = shop.settings.audit_log
    assert path is not None
    await until(lambda: path.read_text().count("\n") >= 5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    who = f"shop:{made['token_id']}"
    assert [(line["key"], line["action"], line["outcome"], line.get("code")) for line in lines] == [
        ("shop", "public_token", "ok", None),
        (who, "public_start", "ok", None),
        (who, "start", "denied", "forbidden"),
        ("-", "stop", "denied", "origin_forbidden"),
        (who, "stop", "ok", None),
    ]
    assert made["token"] not in path.read_text()


async def test_several_orchestrators_count_together() -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server())
        here, there = [await stack.enter_async_context(stage(redis_url=redis.url)) for _ in range(2)]
        made = await mint(here, sessions=2, starts_per_minute=100)
        first = await start(here, made["token"])
        await start(there, made["token"])
        for running in (here, there):
            answer = await ask(running, made["token"], "POST", "/public/session", json={})
            assert refusal(answer) == (429, "quota_exceeded")
            assert "access-control-allow-origin" in (await preflight(running, "/public/session", SHOP)).headers
        elsewhere = await ask(there, made["token"], "POST", f"/session/{first['session_id']}/chat", json={"text": "x"})
        assert refusal(elsewhere) == (421, "session_elsewhere")
        other = (await mint(there, **MANY))["token"]
        hidden = await ask(there, other, "POST", f"/session/{first['session_id']}/stop")
        assert refusal(hidden) == (404, "session_not_found")
        await there.http.delete(f"/public-tokens/{made['token_id']}")
        answer = await ask(here, made["token"], "GET", f"/session/{first['session_id']}")
        assert refusal(answer) == (401, "unauthorized")


def test_what_is_sealed_comes_back_as_it_was() -> None:
    conversation = {
        "instructions": "Sell shoes.",
        "llm": {"base_url": "https://models.example/v1", "model": "m", "api_key": "sk-1"},
        "tools": [{"name": "stock", "description": "How many there are.", "url": "https://shop.example/tools?key=1"}],
    }
    body = PublicTokenRequest.model_validate(
        {
            "origins": [SHOP],
            "avatar_id": ["demo", "sha256:other"],
            "conversation": conversation,
            "webhook_url": "https://shop.example/hook",
            "webhook_secret": "whsec_" + "A" * 44,
            "speech": {"voice": "tone:one"},
        }
    )
    preset = body.preset()
    again = Preset.model_validate_json(preset.model_dump_json())
    assert again == preset and again.start.conversation == body.conversation
    assert again.start.webhook_secret == body.webhook_secret and again.start.speech == body.speech
    chosen = again.chosen("sha256:other")
    assert chosen.avatar_id == "sha256:other" and chosen.room != again.chosen(None).room
