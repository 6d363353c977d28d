"""Health, metrics, debug, uploads, the page and its token."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.stage import Stage, stage
from tests.waiting import NEVER_S, until


async def test_health_follows_the_agents(running: Stage) -> None:
    answer = await running.http.get("/health")
    body = answer.json()
    assert (answer.status_code, body["status"]) == (200, "ok")
    assert body["agents"] == {"total": 1, "ready": 1} and body["capacity"] == {"sessions": 0, "sessions_max": 8}
    async with stage() as other:
        other.agent.status = "warming"
        answer = await other.http.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "no_agent_ready")
        assert "127.0.0.1" not in answer.text


async def test_metrics_count_what_happened(running: Stage) -> None:
    async with running.live() as (started, line):
        await line.socket.send(bytes(3200))
        await line.say("audio.end")
        await line.wait("playback.finished")
        values = await metrics(running)
        assert values[("avatar_orchestrator_sessions", "ready")] == 1
        assert values[("avatar_session_starts_total", "ok")] == 1
        assert values[("avatar_audio_received_bytes_total", "")] == 3200
        assert values[("avatar_segments_finished_total", "false")] == 1
        assert values[("avatar_audio_connections", "")] == 1
        await running.http.post(f"/session/{started['session_id']}/stop")
    values = await metrics(running)
    assert values[("avatar_orchestrator_sessions", "stopped")] == 1
    assert values[("avatar_session_ends_total", "stopped")] == 1
    assert values[("avatar_audio_connections", "")] == 0


async def metrics(running: Stage) -> dict[tuple[str, str], float]:
    text = (await running.http.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    assert families and all(family.name.startswith("avatar_") for family in families)
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


async def test_callers_cannot_make_metrics(running: Stage) -> None:
    for number in range(3):
        await running.http.request(f"WORD{number}", f"/no/{number}")
        await running.http.request("GET", f"/session/{number}")
    requests = [labels for labels in await metrics(running) if labels[0] == "avatar_http_requests_total"]
    assert ("avatar_http_requests_total", "other,(none),404") in requests
    assert not any("WORD" in labels or "/no/" in labels or "/session/1" in labels for _, labels in requests)


async def test_debug_audio_tells_the_source(running: Stage) -> None:
    async with running.live() as (started, line):
        pcm = np.tile(np.array([16384, -16384], "<i2"), 4000).tobytes()
        await line.socket.send(pcm)
        await line.wait("ack")
        (session,) = (await running.http.get("/debug/audio")).json()["sessions"]
        assert session["session_id"] == started["session_id"] and session["publisher"] == "livekit"
        source = session["source"]
        assert source["connected"] is True and source["received_samples"] == 8000
        assert source["rms_dbfs"] == pytest.approx(-6.0, abs=0.1) and source["bytes_per_s"] == 16000
        assert source["format_suspicion"] is None
        assert [track["kind"] for track in session["tracks"]] == ["audio", "video"]


async def test_what_is_dropped_after_a_clear_is_reported(running: Stage) -> None:
    async with running.live() as (started, line):
        noise = np.random.default_rng(1).normal(0, 3000, 3200).astype("<i2").tobytes()
        path = f"/session/{started['session_id']}"
        await line.socket.send(noise)
        await line.wait("ack")
        async with asyncio.timeout(NEVER_S):
            while True:  # it is reported as long as such PCM comes, and a busy machine may ask later than that
                await line.say("clear")
                await line.wait("cleared")
                for _ in range(10):
                    await line.socket.send(noise)
                state, audio, funnel = [
                    (await running.http.get(p)).json() for p in (path, "/debug/audio", "/debug/musetalk")
                ]
                codes = {state["diagnosis"]["code"], funnel["sessions"][0]["diagnosis"]["code"]}
                if audio["sessions"][0]["source"]["dropping_after_clear"] and codes == {"dropping_after_clear"}:
                    break
        await line.say("audio.start")
        await line.socket.send(noise)
        await until(lambda: 2 in running.agent.only.segments)
        (session,) = (await running.http.get("/debug/audio")).json()["sessions"]
        assert session["source"]["dropping_after_clear"] is False
        assert (await running.http.get(path)).json()["diagnosis"]["code"] == "no_audio"


async def test_debug_musetalk_is_the_agents(running: Stage) -> None:
    started = await running.start()
    body = (await running.http.get("/debug/musetalk")).json()
    assert body["engine"] == "warp" and body["device"] == "cpu" and body["unet_config"] is None
    (session,) = body["sessions"]
    assert session["session_id"] == started["session_id"] and session["diagnosis"]["code"] == "no_audio"


async def test_debug_musetalk_says_when_no_agent_answers() -> None:
    async with stage(agent_url="http://127.0.0.1:9") as running:
        answer = await running.http.get("/debug/musetalk")
        assert (answer.status_code, answer.json()["code"]) == (503, "agent_unavailable")


async def test_an_upload_is_streamed_to_the_agent(running: Stage) -> None:
    body = bytes(range(256)) * 4096
    answer = await running.http.post("/avatars", content=body, headers={"X-Filename": "me.mp4"})
    assert answer.status_code == 201 and answer.json()["avatar_id"]
    assert running.agent.avatars.uploads == [("me.mp4", len(body))]


@pytest.mark.parametrize("announced", [True, False])
async def test_an_upload_that_is_too_large_is_refused(announced: bool) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield bytes(1024)

    async with stage(avatar_upload_bytes=10_000) as running:
        answer = await running.http.post("/avatars", content=bytes(20_480) if announced else chunks())
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["limit"]) == (422, "avatar_too_large", 10_000)
        assert running.agent.avatars.uploads == []


@pytest.mark.parametrize(
    ("public_url", "reported"), [("https://avatars.example", True), ("http://avatars.example", False), (None, False)]
)
async def test_where_clients_come_over_https_browsers_are_asked_to_stay_there(
    public_url: str | None, reported: bool
) -> None:
    async with stage(public_url=public_url) as running:
        for path in ("/", "/sessions", "/health", "/no/such/path", "/docs", "/openapi.json"):
            headers = (await running.http.get(path)).headers
            assert ("strict-transport-security" in headers) is reported, path
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] in ("no-cache", "no-store")
            assert headers["x-frame-options"] == "DENY"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
        answer = await running.http.get("/sessions", headers={"Authorization": "Bearer wrong"})
        assert ("strict-transport-security" in answer.headers) is reported and answer.status_code == 401


async def test_the_page_token_is_for_the_demo_alone(running: Stage) -> None:
    answer = await running.http.get("/page/token")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_page_token_opens_the_api_for_a_while() -> None:
    async with stage(page_token_enabled=True) as running:
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=NEVER_S) as page:
            reported = (await page.get("/page/token")).json()
            headers = {"Authorization": f"Bearer {reported['token']}"}
            assert (await page.get("/sessions", headers=headers)).status_code == 200
            away = {**headers, "X-Forwarded-For": "192.0.2.7"}
            assert (await page.get("/sessions", headers=away)).status_code == 401
            for wrong in (
                reported["token"][:-8] + "AAAAAAAA",
                reported["token"].replace(".", "9.", 1),
                "9999999999.",
                "x.y",
            ):
                answer = await page.get("/sessions", headers={"Authorization": f"Bearer {wrong}"})
                assert answer.status_code == 401, wrong
            for headers in ({"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
                assert (await page.get("/page/token", headers=headers)).status_code == 404, headers


async def test_cors_is_off_unless_asked_for(running: Stage) -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in (await running.http.options("/token", headers=headers)).headers
    async with stage(cors_origins="https://app.example") as other:
        async with httpx.AsyncClient(base_url=other.url, trust_env=False, timeout=NEVER_S) as browser:
            answer = await browser.options("/token", headers=headers)
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            for_events = {**headers, "Access-Control-Request-Headers": "authorization, last-event-id"}
            assert (await browser.options("/session/a/events", headers=for_events)).status_code == 200
            stranger = await browser.options("/token", headers={**headers, "Origin": "https://app.example.evil"})
            assert "access-control-allow-origin" not in stranger.headers
            refused = await browser.get("/sessions", headers={"Origin": "https://app.example"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "https://app.example"
