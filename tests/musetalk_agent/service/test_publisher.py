"""`POST /session/{id}/publisher`, and RTMP addresses at the start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.musetalk_agent.service.served import Agent, agent
from tests.servers.nginx_rtmp import NginxRtmp


@pytest.fixture
async def nginx() -> AsyncIterator[NginxRtmp]:
    made = NginxRtmp()
    try:
        await made.start()
        yield made
    finally:
        await made.aclose()


async def set_mode(made: Agent, mode: object, session_id: str = "s1") -> tuple[int, str | None]:
    answer = await made.http.post(f"/session/{session_id}/publisher", json={"mode": mode})
    return answer.status_code, answer.json().get("code")


async def test_a_session_that_publishes_nothing_has_no_mode(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        assert (await made.start()).status_code == 200
        assert await set_mode(made, "rtmp") == (409, "publisher_unavailable")
        assert (await set_mode(made, "carrier pigeon"))[0] == 422
        assert await set_mode(made, "auto", "nobody") == (404, "session_not_found")


async def test_a_session_without_a_room_goes_to_rtmp_and_stays_there(tmp_path: Path, nginx: NginxRtmp) -> None:
    async with agent(tmp_path, allow_private_urls=True) as made:
        started = await made.start(rtmp={"url": nginx.url()})
        assert started.status_code == 200, started.text
        assert (started.json()["publisher"], started.json()["transport"]["rung"]) == ("rtmp", "rtmp")
        assert nginx.url() not in started.text
        assert await set_mode(made, "rtmp") == (200, None)
        assert await set_mode(made, "webrtc") == (409, "publisher_unavailable")
        metrics = (await made.http.get("/metrics")).text
        assert 'avatar_publisher_rung{rung="rtmp"} 1.0' in metrics
        assert 'avatar_adaptation_step{step="0"} 1.0' in metrics
        assert (await made.http.post("/session/s1/stop")).json()["state"] == "stopped"
        metrics = (await made.http.get("/metrics")).text
        assert 'avatar_publisher_rung{rung="rtmp"} 0.0' in metrics
        assert 'avatar_adaptation_step{step="0"} 0.0' in metrics


async def test_where_rtmp_may_go_is_checked_at_the_start(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        answer = await made.start(rtmp={"url": "rtmp://127.0.0.1/live/secret"})
        assert (answer.status_code, answer.json()["code"]) == (422, "rtmp_url_forbidden")
        assert "secret" not in answer.text
        assert (await made.http.get("/session/s1")).status_code == 404
