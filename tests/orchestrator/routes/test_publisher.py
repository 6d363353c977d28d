"""Where media go: RTMP addresses, who speaks, the way that is held to, and what of it is shown."""

from __future__ import annotations

from typing import Any

import pytest

from musetalk_agent.protocol.http import PublisherMode, VideoCodec, VoiceSource
from musetalk_agent.protocol.messages import PublisherChanged
from tests.fakes.stage import Stage
from tests.orchestrator.routes.test_sessions import claims
from tests.waiting import until

KEY = "a-stream-key-that-nobody-sees"
URL = f"rtmp://stream.example/live/{KEY}"
BODY = {"room": "stage", "engine": "pattern"}


async def test_the_agent_gets_the_address_and_nobody_else_sees_it(
    running: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    started = await running.start(rtmp_url=URL, wants_rtmp=True, publisher="webrtc")
    asked = running.agent.only.request
    assert asked.rtmp is not None and asked.rtmp.url == URL and asked.rtmp.beside and not asked.rtmp.ingress
    assert asked.publisher_mode is PublisherMode.WEBRTC
    shown = [str(started), caplog.text, repr(running.app.state.context.sessions.registry.all())]
    paths = (f"/session/{started['session_id']}", "/sessions", "/debug/audio", "/debug/musetalk")
    shown += [(await running.http.get(path)).text for path in paths]
    assert not [text for text in shown if KEY in text]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"rtmp_url": "https://stream.example/live"}, "rtmp_url_forbidden", "rtmp_url"),
        ({"wants_rtmp": True}, "invalid_request", "rtmp_url"),
        ({"publisher": "carrier-pigeon"}, "invalid_request", "publisher"),
        ({"rtmp_url": "rtmp://"}, "invalid_request", "rtmp_url"),
        ({"video_codec": "h265"}, "invalid_request", "video_codec"),
        ({"simulcast": "perhaps"}, "invalid_request", "simulcast"),
        ({"simulcast": True, "connect_livekit": False}, "invalid_request", "simulcast"),
    ],
)
async def test_what_cannot_be_is_named(running: Stage, fields: dict[str, Any], code: str, field: str) -> None:
    answer = await running.http.post("/session/start", json={**BODY, **fields})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field)


@pytest.mark.parametrize(
    ("speaker", "voice", "on_behalf"),
    [
        (None, VoiceSource.AGENT, None),
        ("agent", VoiceSource.AGENT, None),
        ("orchestrator", VoiceSource.ORCHESTRATOR, None),
        ("host-7", VoiceSource.AGENT, "host-7"),
    ],
)
async def test_speaker_says_who_publishes_or_for_whom(
    running: Stage, speaker: str | None, voice: VoiceSource, on_behalf: str | None
) -> None:
    started = await running.start(speaker=speaker, connect_livekit=False)
    asked = running.agent.only.request
    assert asked.voice is voice
    assert claims(asked.livekit_token).get("attributes", {}).get("lk.publish_on_behalf") == on_behalf
    probe = claims(asked.probe_token or "")
    assert probe["sub"] == f"probe-{started['session_id']}" and probe["video"]["hidden"] is True
    assert not probe["video"].get("canPublish") and not probe["video"].get("canSubscribe")


async def test_the_way_can_be_held_to_and_its_changes_are_reported(running: Stage) -> None:
    async with running.live(rtmp_url=URL) as (started, line):
        path = f"/session/{started['session_id']}/publisher"
        view = (await running.http.post(path, json={"mode": "rtmp"})).json()
        assert view["transport"]["mode"] == "rtmp" and running.agent.only.mode is PublisherMode.RTMP
        running.agent.only.emit(PublisherChanged(publisher="rtmp", reason="as asked for"))
        assert (await line.wait("publisher.changed"))["publisher"] == "rtmp"
        assert (await running.http.get(f"/session/{started['session_id']}")).json()["moves"] == 0
        wrong = await running.http.post(path, json={"mode": "smoke"})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_request")


async def test_a_way_that_there_is_not_is_refused(running: Stage) -> None:
    started = await running.start()
    answer = await running.http.post(f"/session/{started['session_id']}/publisher", json={"mode": "rtmp"})
    assert (answer.status_code, answer.json()["code"]) == (409, "publisher_unavailable")
    await running.http.post(f"/session/{started['session_id']}/stop")
    ended = await running.http.post(f"/session/{started['session_id']}/publisher", json={"mode": "auto"})
    assert ended.json()["code"] == "session_ended"


async def test_debug_audio_tells_who_speaks_and_how_the_agent_is(running: Stage) -> None:
    running.agent.pace = 1.0
    async with running.live() as (_, line):
        await line.socket.send(bytes(32000))
        await line.wait("playback.started")

        async def played() -> dict[str, Any] | None:
            (session,) = (await running.http.get("/debug/audio")).json()["sessions"]
            return dict(session) if session["agent_link"]["segment"] == 1 else None

        session = await until(played)
        assert session is not None
        voice, link = session["voice"], session["agent_link"]
        assert (voice["source"], voice["room"], voice["track"]) == ("agent", "stage", "TR_a")
        assert link["connected"] and link["ack_age_s"] >= 0 and link["segment"] == 1 and not link["draining"]
        assert 0 < voice["buffer_s"] <= 1.0 and session["moves"] == 0


async def test_the_agent_gets_codec_and_simulcast(running: Stage) -> None:
    await running.start(video_codec="auto", simulcast=True, fps=60)
    asked = running.agent.only.request
    assert (asked.video_codec, asked.simulcast, asked.picture.fps) == (VideoCodec.AUTO, True, 60)
    assert VideoCodec.AUTO.chosen is VideoCodec.H264
    assert VideoCodec.VP8.chosen is VideoCodec.VP8
