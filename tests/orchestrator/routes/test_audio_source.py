"""Sessions whose speech comes through the room: what they need, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import websockets

from musetalk_agent.protocol.http import AudioSource
from tests.fakes.stage import Stage, stage
from tests.orchestrator.session.lifetimes import looked_at, wound
from tests.orchestrator.session.test_manager import ended

BODY = {"room": "stage", "engine": "pattern", "audio_source": "datastream"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "speaker"),
        ({"speaker": "agent"}, "speaker"),
        ({"speaker": "orchestrator"}, "speaker"),
        ({"speaker": "agent-1", "connect_livekit": False}, "connect_livekit"),
        ({"speaker": "agent-1", "audio_source": "telepathy"}, "audio_source"),
    ],
)
async def test_what_cannot_be_is_named(running: Stage, fields: dict[str, Any], field: str) -> None:
    answer = await running.http.post("/session/start", json={**BODY, **fields})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "invalid_request", field)


async def test_speech_from_elsewhere_is_refused_and_an_interrupt_is_not(running: Stage) -> None:
    started = await running.start(audio_source="datastream", speaker="agent-1")
    assert running.agent.only.request.livekit_agent == "agent-1"
    path = f"/session/{started['session_id']}"
    spoken = await running.http.post(f"{path}/speak", json={"text": "Hello."})
    assert (spoken.status_code, spoken.json()["code"], spoken.json()["value"]) == (409, "speech_elsewhere", "agent-1")
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with running.audio(started["audio_url"]):
            pass
    assert refused.value.response.status_code == 409
    assert (await running.http.post(f"{path}/interrupt")).status_code == 200


async def test_other_sessions_take_speech_as_ever(running: Stage) -> None:
    await running.start(speaker="agent-1")
    assert running.agent.only.request.livekit_agent is None
    (session,) = running.app.state.context.sessions.registry.running()
    assert session.order.audio_source is AudioSource.HTTP and session.speakable() is session.live


async def test_the_speaker_keeps_the_session_alive_and_ends_it_by_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = wound(monkeypatch)
    async with stage(speaker_grace_s=200.0, session_idle_ttl_s=220.0) as running:
        started = await running.start(audio_source="datastream", speaker="agent-1")
        session = running.app.state.context.sessions.registry.get(started["session_id"])
        agent = running.agent.only
        agent.viewers, agent.speaker_present = 1, True
        for _ in range(2):  # for longer than it lives without a speaker
            await looked_at(session)
            clock.ahead_s += 150.0
            await looked_at(session)
            assert (await running.http.get(f"/session/{started['session_id']}")).json()["state"] == "ready"
        agent.speaker_present = False
        await looked_at(session)
        assert not session.ended
        clock.ahead_s += 210.0
        view = await ended(running, started["session_id"])
        assert (view["state"], view["end_reason"]) == ("stopped", "speaker_left")
