"""Who may call what: every route of the app, so that a new one cannot be forgotten."""

from __future__ import annotations

import json
import re
from datetime import datetime

import httpx
import pytest
import websockets

from musetalk_agent.protocol import throttle
from orchestrator.app import OPEN_PATHS
from orchestrator.routes.page import files
from tests.fakes.stage import API_KEY, OTHER_KEY, Stage, stage
from tests.waiting import NEVER_S

WEB = {address for address, _ in files()}


def routes(running: Stage) -> list[tuple[str, str]]:
    """Method and path of every route, as OpenAPI and the router know them."""
    listed = [
        (method.upper(), re.sub(r"{\w+}", "none", path))
        for path, methods in running.app.openapi()["paths"].items()
        for method in methods
    ]
    assert len(listed) >= 13
    return listed


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", f"Basic {API_KEY}", API_KEY, f"Bearer {API_KEY}x"])
async def test_every_route_but_the_open_ones_is_closed(
    running: Stage, header: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "FAILURES_BURST", 1000)  # no wrong key is one too many here
    headers = {"Authorization": header} if header else {}
    async with httpx.AsyncClient(base_url=running.url, headers=headers, trust_env=False, timeout=NEVER_S) as nobody:
        for method, path in [*routes(running), ("POST", "/no/such/path")]:
            answer = await nobody.request(method, path, content=b"{not json" if method == "POST" else None)
            if path in OPEN_PATHS | WEB:
                assert answer.status_code in (200, 404), path
                continue
            assert answer.status_code == 401, path
            assert answer.json()["code"] == "unauthorized"
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert running.agent.sessions == {} and running.rooms.rooms == {}


async def test_open_paths_need_no_key(running: Stage) -> None:
    async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=NEVER_S) as nobody:
        for path in ["/health", "/docs", "/openapi.json", *WEB]:
            assert (await nobody.get(path)).status_code == 200, path
        assert (await nobody.head("/health")).status_code == 200


async def test_each_of_several_keys_opens_the_api(running: Stage) -> None:
    for key in (API_KEY, OTHER_KEY):
        answer = await running.http.get("/sessions", headers={"Authorization": f"bearer {key}"})
        assert answer.status_code == 200


async def refused(url: str, **headers: str) -> tuple[int, str]:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with websockets.connect(url, additional_headers=headers, proxy=None):
            pass
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, json.loads(response.body)["code"]


async def test_audio_is_refused_before_the_upgrade(running: Stage) -> None:
    one, two = await running.start(), await running.start()
    url, base = one["audio_url"], one["audio_url"].split("?")[0]
    key = {"Authorization": f"Bearer {API_KEY}"}
    unauthorized = (401, "unauthorized")
    assert await refused(url.replace(one["session_id"], two["session_id"])) == unauthorized
    assert await refused(f"{base}?session_id={one['session_id']}") == unauthorized
    assert await refused(url[:-4] + "AAAA") == unauthorized
    assert await refused(re.sub(r"token=\d+", "token=9999999999", url)) == unauthorized
    assert await refused(f"{base}?session_id={one['session_id']}", Authorization="Bearer wrong") == unauthorized
    assert await refused(f"{base}?session_id=none", **key) == (404, "session_not_found")
    assert await refused(base, **key) == (422, "invalid_request")
    for query in ("sample_rate=7999", "sample_rate=48001", "sample_rate=x", "sample_rate=-16000", "format=mp3"):
        assert await refused(f"{url}&{query}") == (422, "invalid_request"), query
    await running.http.post(f"/session/{one['session_id']}/stop")
    assert await refused(url) == (404, "session_not_found")


async def test_a_server_may_connect_with_its_key_alone(running: Stage) -> None:
    started = await running.start()
    url = started["audio_url"].split("&token")[0]
    async with running.audio(url, Authorization=f"Bearer {API_KEY}") as line:
        assert (await line.wait("hello"))["session_id"] == started["session_id"]


async def test_tokens_end_with_their_session() -> None:
    async with stage(session_max_s=1) as running:
        started = await running.start()
        expiry = int(re.search(r"token=(\d+)", started["audio_url"])[1])  # type: ignore[index]
        assert expiry == pytest.approx(unix(started["expires_at"]), abs=1)


def unix(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
