"""A LiveKit that accepts calls and says nothing, trickles, floods, or talks nonsense: each request ends with a code in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from orchestrator import livekit_client, tokens
from tests.fakes.balky import Mode
from tests.fakes.stage import API_KEY, Stage, stage

DEADLINE_S = 0.5
NEVER_S = 20.0
"""Only catches what never comes."""
ANSWER_BYTES = 1 << 20
WRONG = [mode for mode in Mode if mode is not Mode.WELL]


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(tokens, "CALL_S", DEADLINE_S)
    monkeypatch.setattr(tokens, "COURTESY_S", DEADLINE_S)
    monkeypatch.setattr("orchestrator.ingress.CALL_S", DEADLINE_S)
    monkeypatch.setattr(livekit_client, "ANSWER_BYTES", ANSWER_BYTES)
    async with asyncio.timeout(NEVER_S), stage() as made:
        made.rooms.ingress_url = "rtmp://127.0.0.1:1935/live"
        yield made


@pytest.mark.parametrize("mode", WRONG)
@pytest.mark.parametrize(
    ("path", "body"),
    [("/session/start", {"room": "r", "engine": "pattern"}), ("/token", {"room": "r", "identity": "v"})],
)
async def test_a_request_that_needs_livekit_is_refused(
    running: Stage, mode: Mode, path: str, body: dict[str, str]
) -> None:
    running.livekit.mode = mode
    answer = await running.http.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "livekit_unavailable")
    assert running.livekit.asked >= 1 and "Retry-After" in answer.headers
    running.livekit.mode = Mode.WELL
    assert (await running.http.get("/sessions")).json()["sessions"] == []
    assert running.agent.sessions == {} and (await running.http.get("/health")).status_code == 200
    assert (await running.http.post(path, json=body)).status_code == 200


@pytest.mark.parametrize("mode", WRONG)
async def test_a_session_that_speaks_goes_on_and_stops(running: Stage, mode: Mode) -> None:
    async with running.live() as (started, line):
        running.livekit.mode = mode
        await line.say("audio.start")
        await line.socket.send(bytes(3200))
        await line.say("audio.end")
        await line.wait("playback.finished")
        answer = await running.http.post(f"/session/{started['session_id']}/stop")
        assert (answer.status_code, answer.json()["state"]) == (200, "stopped")
    assert running.agent.stopped == [started["session_id"]]
    assert running.livekit.asked >= 2  # the avatar and the ingress were to be removed
    running.livekit.mode = Mode.WELL
    context = running.app.state.context
    record = next(r for r in await context.ledger.store.sessions() if r.session_id == started["session_id"])
    assert record.ingress_id in running.rooms.ingresses, "the reaper would not find what is left"


async def test_a_flood_is_read_up_to_its_bound(running: Stage) -> None:
    running.livekit.mode = Mode.FLOOD
    assert (await running.http.post("/token", json={"room": "r", "identity": "v"})).status_code == 503
    asked, sent = running.livekit.asked, running.livekit.sent_bytes
    assert asked >= 1 and sent < asked * (ANSWER_BYTES + (16 << 20))  # with what is in the sockets' buffers


@pytest.mark.parametrize("mode", [Mode.SILENT, Mode.TRICKLE])
async def test_the_service_ends_while_livekit_hangs(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    """With the deadlines as they are."""
    async with asyncio.timeout(3 * NEVER_S), httpx.AsyncClient(timeout=NEVER_S, trust_env=False) as patient:
        async with stage() as made:
            await made.start(room="a")
            made.livekit.mode = mode
            body = {"room": "b", "engine": "pattern"}
            call = patient.post(f"{made.url}/session/start", json=body, headers={"Authorization": f"Bearer {API_KEY}"})
            starting = asyncio.create_task(call)
            await made.livekit.was_asked.wait()
            begun = time.monotonic()
        ended_s = time.monotonic() - begun
        answer = await starting
    assert answer.status_code in (409, 503)
    assert answer.json()["code"] in ("livekit_unavailable", "session_ended")
    assert ended_s < 10.0, "a container would be killed by then"
