"""Sessions whose speech comes through the room: what they need, and what they refuse."""

from __future__ import annotations

from typing import Any

import jwt
import pytest
import websockets

from musetalk_agent.protocol.http import AudioSource, Microphone, MicrophoneState, VoiceSource
from tests.fakes.stage import LIVEKIT_SECRET, Stage, stage
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
        ({"audio_source": "participant"}, "audio_source"),
        ({"audio_source": 7}, "audio_source"),
        ({"audio_source": {}}, "audio_source"),
        ({"audio_source": {"participant": ""}}, "audio_source"),
        ({"audio_source": {"participant": "a" * 257}}, "audio_source"),
        ({"audio_source": {"participant": "anna", "room": "elsewhere"}}, "audio_source"),
        ({"audio_source": {"participant": "avatar-ses_1234"}}, "audio_source.participant"),
        ({"audio_source": {"participant": "anna"}, "speaker": "bob"}, "speaker"),
        ({"audio_source": {"participant": "anna"}, "speaker": "orchestrator"}, "speaker"),
        ({"audio_source": {"participant": "anna"}, "connect_livekit": False}, "connect_livekit"),
        ({"audio_source": {"participant": "anna"}, "publisher": "rtmp"}, "publisher"),
        ({"audio_source": {"participant": "anna"}, "conversation": {"instructions": "Be brief."}}, "conversation"),
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


MICROPHONE = {"audio_source": {"participant": "anna"}}


async def test_the_agent_hears_the_participant_and_what_it_knows_of_the_microphone_is_shown(running: Stage) -> None:
    started = await running.start(**MICROPHONE)
    agent = running.agent.only
    asked = agent.request
    assert (asked.microphone_of, asked.livekit_agent, asked.voice) == ("anna", None, VoiceSource.AGENT)
    attributes = jwt.decode(asked.livekit_token, LIVEKIT_SECRET, algorithms=["HS256"])["attributes"]
    assert attributes["lk.publish_on_behalf"] == "anna"
    path = f"/session/{started['session_id']}"
    agent.microphone = Microphone(participant="anna", state=MicrophoneState.WAITING, message="Waiting for 'anna'.")
    await looked_at(running.app.state.context.sessions.registry.get(started["session_id"]))
    assert (await running.http.get(path)).json()["microphone"] == {
        "participant": "anna",
        "state": "waiting",
        "message": "Waiting for 'anna'.",
        "left_out_ms": 0,
        "stretched_ms": 0,
        "late_ms": 0,
    }
    spoken = await running.http.post(f"{path}/speak", json={"text": "Hello."})
    assert (spoken.status_code, spoken.json()["code"], spoken.json()["value"]) == (409, "speech_elsewhere", "anna")
    assert "microphone of 'anna'" in spoken.json()["detail"]
    moved = await running.http.post(f"{path}/publisher", json={"mode": "rtmp"})
    assert (moved.status_code, moved.json()["code"]) == (409, "publisher_unavailable")
    assert (await running.http.post(f"{path}/publisher", json={"mode": "webrtc"})).status_code == 200
    assert (await running.http.post(f"{path}/interrupt")).status_code == 200


async def test_the_participant_may_come_late_and_ends_the_session_by_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = wound(monkeypatch)
    async with stage(speaker_grace_s=60.0, session_idle_ttl_s=400.0) as running:
        started = await running.start(**MICROPHONE)
        session = running.app.state.context.sessions.registry.get(started["session_id"])
        agent = running.agent.only
        agent.viewers, agent.speaker_present = 1, False
        for present in (False, False, True):
            await looked_at(session)
            clock.ahead_s += 130.0  # longer than a speaker may be away
            agent.speaker_present = present
            await looked_at(session)
            assert not session.ended
        agent.speaker_present = False
        await looked_at(session)
        clock.ahead_s += 70.0
        view = await ended(running, started["session_id"])
        assert (view["state"], view["end_reason"]) == ("stopped", "speaker_left")
        assert "microphone" not in view


async def test_the_participants_token_is_for_a_microphone_and_not_for_a_viewers_key(running: Stage) -> None:
    body = {"room": "stage", "identity": "anna", "publish": ["microphone"]}
    answer = (await running.http.post("/token", json=body)).raise_for_status().json()
    grants = jwt.decode(answer["token"], LIVEKIT_SECRET, algorithms=["HS256"])["video"]
    assert grants["canPublish"] and grants["canPublishSources"] == ["microphone"] and grants["canSubscribe"]
    assert not grants.get("canPublishData") and not grants.get("canUpdateOwnMetadata")
    for wrong in (["camera"], ["microphone", "microphone"], "microphone"):
        refused = await running.http.post("/token", json={**body, "publish": wrong})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
