"""Two real agents in a real room: one is killed in the middle of a sentence, or asked to leave."""

from __future__ import annotations

import signal

import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from tests.musetalk_agent.microphone.speaker import Speaker, until_heard
from tests.orchestrator.voice.stack import ROOM, stack
from tests.orchestrator.voice.tones import heard_all, listening, once, tone_code
from tests.viewer import Viewer

pytestmark = pytest.mark.livekit
SYMBOLS = 35


async def test_a_viewer_hears_the_sentence_of_a_killed_agent_to_its_end(livekit_server: LiveKitAccess) -> None:
    async with stack(livekit_server, voice_standby="off") as running, running.stage.live(room=ROOM) as (started, line):
        ears = running.ears
        await listening(ears)
        await line.say("audio.start")
        await line.socket.send(tone_code(SYMBOLS))
        await line.say("audio.end")
        assert await heard_all(ears, 15, settle_s=0)
        running.agent_of(started).kill()
        assert await heard_all(ears, SYMBOLS - 1)
        finished = await line.wait("playback.finished")
        assert finished["position_s"] == pytest.approx(SYMBOLS / 10, abs=0.001) and not finished["interrupted"]
        reported = [len(line.of(kind)) for kind in ("playback.started", "playback.finished", "session.state", "error")]
        assert reported == [1, 1, 2, 0]
        assert once(ears.durations(SYMBOLS)), "only where the agents meet is something heard twice"
        session = (await running.stage.http.get(f"/session/{started['session_id']}")).json()
        assert session["moves"] == 1 and session["avatar_identity"] == started["avatar_identity"]


@pytest.mark.network
async def test_an_agent_that_is_terminated_hands_its_session_over(livekit_server: LiveKitAccess) -> None:
    async with stack(livekit_server, voice_standby="off") as running, running.stage.live(room=ROOM) as (started, line):
        await listening(running.ears)
        await line.say("audio.start")
        await line.socket.send(tone_code(20))
        await line.say("audio.end")
        assert await heard_all(running.ears, 8, settle_s=0)
        leaving = running.agent_of(started)
        leaving.signal(signal.SIGTERM)
        await line.wait("session.state", count=2)
        assert [message.get("reason") for message in line.of("session.state")] == ["draining", "moved"]
        assert running.agent_of(started) is not leaving
        assert await heard_all(running.ears, 19)
        assert once(running.ears.durations(20))
        assert await leaving.ended() == 0


@pytest.mark.network
async def test_the_next_agent_of_a_killed_one_says_the_microphone(livekit_server: LiveKitAccess) -> None:
    async with stack(livekit_server, voice_standby="off") as running:
        http = running.stage.http
        asked = {"room": ROOM, "identity": "anna", "publish": ["microphone"]}
        ticket = (await http.post("/token", json=asked)).raise_for_status().json()
        started = await running.stage.start(room=ROOM, audio_source={"participant": ticket["identity"]})
        anna, avatar = await Speaker().join(livekit_server.url, ticket["token"]), started["avatar_identity"]
        viewer = await Viewer().join(livekit_server.url, started["viewer_token"])
        try:
            await anna.publish()
            anna.note = 500
            await until_heard(viewer, avatar, 500)
            running.agent_of(started).kill()
            anna.note = 700
            await until_heard(viewer, avatar, 700)
            session = (await http.get(f"/session/{started['session_id']}")).json()
            assert (session["moves"], session["microphone"]["state"]) == (1, "live")
        finally:
            await anna.leave()
            await viewer.leave()
