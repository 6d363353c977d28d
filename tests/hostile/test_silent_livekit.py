"""A LiveKit that accepts calls and says nothing, trickles, floods, or talks nonsense: each request ends with a code in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager

import httpx
import pytest

from orchestrator import livekit_rooms
from tests.fakes.balky import Mode
from tests.fakes.stage import API_KEY, Stage, stage
from tests.waiting import NEVER_S

DEADLINE_S = 0.5
"""How long a call to a LiveKit that misbehaves is waited for."""
ANSWER_BYTES = 1 << 20
WRONG = [mode for mode in Mode if mode is not Mode.WELL]
CALLS = (
    "orchestrator.livekit_rooms.CALL_S",
    "orchestrator.livekit_rooms.COURTESY_S",
    "orchestrator.livekit_rooms.INGRESS_CALL_S",
)


@contextmanager
def misbehaving(running: Stage, mode: Mode) -> Iterator[None]:
    """LiveKit misbehaves meanwhile, and is waited for a moment only."""
    with pytest.MonkeyPatch.context() as patch:
        for constant in CALLS:
            patch.setattr(constant, DEADLINE_S)
        running.livekit.mode = mode
        yield
        running.livekit.mode = Mode.WELL


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    for constant in CALLS:
        monkeypatch.setattr(constant, NEVER_S)
    monkeypatch.setattr(livekit_rooms, "ANSWER_BYTES", ANSWER_BYTES)
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
    with misbehaving(running, mode):
        answer = await running.http.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "livekit_unavailable")
    assert running.livekit.asked >= 1 and "Retry-After" in answer.headers
    assert (await running.http.get("/sessions")).json()["sessions"] == []
    assert running.agent.sessions == {} and (await running.http.get("/health")).status_code == 200
    assert (await running.http.post(path, json=body)).status_code == 200


@pytest.mark.parametrize("mode", WRONG)
async def test_a_session_that_speaks_goes_on_and_stops(running: Stage, mode: Mode) -> None:
    async with running.live() as (started, line), AsyncExitStack() as meanwhile:
        meanwhile.enter_context(misbehaving(running, mode))
        await line.say("audio.start")
        await line.socket.send(bytes(3200))
        await line.say("audio.end")
        await line.wait("playback.finished")
        answer = await running.http.post(f"/session/{started['session_id']}/stop")
        assert (answer.status_code, answer.json()["state"]) == (200, "stopped")
    assert running.agent.stopped == [started["session_id"]]
    assert running.livekit.asked >= 2  # the avatar and the ingress were to be removed
    context = running.app.state.context
    record = next(r for r in await context.journal.store.sessions() if r.session_id == started["session_id"])
    assert record.ingress_id in running.rooms.ingresses, "the reaper would not find what is left"


async def test_a_flood_is_read_up_to_its_bound(running: Stage) -> None:
    with misbehaving(running, Mode.FLOOD):
        assert (await running.http.post("/token", json={"room": "r", "identity": "v"})).status_code == 503
    asked, sent = running.livekit.asked, running.livekit.sent_bytes
    assert asked >= 1 and sent < asked * (ANSWER_BYTES + (16 << 20))  # with what is in the sockets' buffers


@pytest.mark.parametrize("mode", [Mode.SILENT, Mode.TRICKLE])
async def test_the_service_ends_while_livekit_hangs(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    """With the deadlines as they are."""
    async with asyncio.timeout(NEVER_S), httpx.AsyncClient(timeout=NEVER_S, trust_env=False) as patient:
        async with stage() as made:
            await made.start(room="a")
            made.livekit.mode = mode
            body = {"room": "b", "engine": "pattern"}
            call = patient.post(f"{made.url}/session/start", json=body, headers={"Authorization": f"Bearer {API_KEY}"})
            starting = asyncio.create_task(call)
            await made.livekit.was_asked.wait()
        answer = await starting
    assert answer.status_code in (409, 503)
    assert answer.json()["code"] in ("livekit_unavailable", "session_ended")
