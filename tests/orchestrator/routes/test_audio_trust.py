"""Who may open `/audio`, from where, how often, and for how long."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import websockets

from musetalk_agent.protocol import throttle
from orchestrator import quotas
from tests.fakes.stage import Stage, stage
from tests.orchestrator.routes.test_auth import refused
from tests.orchestrator.routes.test_scopes import BODY, KEYS, SECOND, STARTER, VIEWER, by

PAGE = "https://app.example"


@pytest.mark.parametrize(
    ("settings", "origin", "allowed"),
    [
        ({}, None, True),
        ({}, "http://{host}", True),
        ({}, "https://{host}", True),
        ({}, PAGE, False),
        ({}, "null", False),
        ({}, "http://{host}.evil.example", False),
        ({}, "http://evil.example/{host}", False),
        ({}, "", False),
        ({"cors_origins": PAGE}, PAGE, True),
        ({"allowed_origins": f"https://other.example, {PAGE}/"}, PAGE, True),
        ({"allowed_origins": "https://other.example", "cors_origins": PAGE}, PAGE, False),
        ({"allowed_origins": PAGE}, "http://app.example", False),
        ({"allowed_origins": PAGE}, f"{PAGE}:444", False),
        ({"allowed_origins": PAGE}, "https://sub.app.example", False),
        ({"allowed_origins": "*"}, "null", True),
        ({"public_url": "https://avatars.example"}, "https://avatars.example", True),
    ],
)
async def test_a_browser_may_only_come_from_a_page_that_is_known(
    settings: dict[str, str], origin: str | None, allowed: bool
) -> None:
    async with stage(**settings) as running:
        started = await running.start()
        host = running.url.partition("://")[2]
        url = f"ws://{host}/audio?{started['audio_url'].partition('?')[2]}"
        headers = {} if origin is None else {"Origin": origin.format(host=host)}
        if allowed:
            async with running.audio(url, **headers) as line:
                await line.wait("hello")
        else:
            assert await refused(url, **headers) == (403, "forbidden")


async def test_a_key_opens_what_its_scope_and_its_sessions_allow(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(KEYS))
    async with stage(orchestrator_keys_file=keys) as running:
        answer = await running.http.post("/session/start", json=BODY, headers=by(STARTER))
        with_token = answer.json()["audio_url"]
        url = with_token.partition("&token")[0]
        assert await refused(url, **by(VIEWER)) == (403, "forbidden")
        assert await refused(url, **by(SECOND)) == (404, "session_not_found")
        for address, headers in ((url, by(STARTER)), (with_token, {}), (with_token, by(VIEWER))):
            async with running.audio(address, **headers) as line:
                await line.wait("hello")


async def test_a_connection_without_messages_is_closed() -> None:
    async with stage(audio_idle_s=0.3) as running:
        started = await running.start()
        async with running.audio(started["audio_url"]) as line:
            error = await line.wait("error")
            assert error["code"] == "idle_timeout" and "0.3 s" in error["message"]
            assert await line.closed() == 1008
        async with running.audio(started["audio_url"]) as line:
            await line.wait("hello")
        assert (await running.http.get(f"/session/{started['session_id']}")).json()["state"] == "ready"


async def test_pings_keep_it_open() -> None:
    async with stage(audio_idle_s=2.0) as running, running.live() as (_, line):
        for _ in range(15):  # for longer than a connection without messages lives
            await asyncio.sleep(0.2)
            await line.say("ping")
        await line.wait("pong", count=15)
        assert not line.of("error")


async def test_a_flood_of_text_messages_meets_the_rate() -> None:
    async with stage(audio_bytes_per_s=64_000) as running, running.live() as (_, line):
        try:
            while not line.of("error"):
                await line.say("audio.end")
                await asyncio.sleep(0)
        except websockets.ConnectionClosed:
            pass
        error = await line.wait("error")
        assert error["code"] == "rate_exceeded"
        assert await line.closed() == 1008


async def test_a_session_that_is_opened_in_a_loop_is_slowed_down(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "CONNECTS_BURST", 3)
    monkeypatch.setattr(quotas, "CONNECTS_PER_S", 0.01)
    started, other = await running.start(), await running.start()
    for _ in range(3):
        async with running.audio(started["audio_url"]) as line:
            await line.wait("hello")
    assert await refused(started["audio_url"]) == (429, "rate_limited")
    async with running.audio(other["audio_url"]) as line:
        await line.wait("hello")


async def test_connections_of_a_caller_are_bounded(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "CONNECTIONS_PER_CALLER", 1)
    one, other = await running.start(), await running.start()
    async with running.audio(one["audio_url"]) as line:
        await line.wait("hello")
        assert await refused(other["audio_url"]) == (429, "quota_exceeded")
        answer = await running.http.get(f"/session/{one['session_id']}/events")
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")


async def test_tokens_cannot_be_tried_quickly(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "FAILURES_PER_S", 1e-3)
    started = await running.start()
    url = started["audio_url"]
    codes = [(await refused(f"{url[:-4]}{number:04d}"))[0] for number in range(throttle.FAILURES_BURST + 5)]
    assert codes[0] == 401 and codes[-1] == 429
    async with running.audio(url) as line:  # the right one is no guess
        await line.wait("hello")
