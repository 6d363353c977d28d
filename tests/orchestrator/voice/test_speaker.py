"""`speaker=orchestrator`: pictures from the agent, voice from the orchestrator, in step; and no gap when the agent is lost."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from tests.musetalk_agent.stand import bursts
from tests.orchestrator.voice.stack import ROOM, speak, stack
from tests.orchestrator.voice.tones import heard_all, once, tone_code
from tests.waiting import NEVER_S

pytestmark = pytest.mark.livekit


async def test_the_orchestrators_voice_is_in_step_and_a_killed_agent_is_not_heard(
    livekit_server: LiveKitAccess,
) -> None:
    async with (
        stack(livekit_server) as running,
        running.stage.live(room=ROOM, speaker="orchestrator") as (started, line),
    ):
        ears = running.ears
        assert await ears.until(NEVER_S, lambda: ears.video and len(ears.tracks) == 2)
        assert sorted(ears.tracks) == [
            ("avatar-video", started["avatar_identity"]),
            ("avatar-voice", "voice-" + started["session_id"]),
        ]
        begun = time.monotonic()
        await speak(line, bursts(3).tobytes())
        await line.wait("playback.finished")
        skews = [
            min((white - sound for white in ears.whites(begun)), key=abs, default=9.0) for sound in ears.onsets(begun)
        ]
        assert len(skews) >= 3 and abs(float(np.median(skews))) < 0.5, (
            skews
        )  # a wide bar: `measure.py skew` has the figure
        reported = (await running.stage.http.get("/debug/audio")).json()["sessions"][0]
        assert (
            reported["voice"]["source"] == "orchestrator"
            and reported["voice"]["role"] == "speaks"
            and reported["voice"]["following"]
        )
        ears.forget()

        sending = asyncio.create_task(speak(line, tone_code(40)))
        assert await heard_all(ears, 12, settle_s=0)
        running.agent_of(started).kill()
        killed = time.monotonic()
        assert await heard_all(ears, 39)
        await sending
        finished = await line.wait("playback.finished", count=2)
        assert finished["position_s"] == pytest.approx(4.0, abs=0.001) and not finished["interrupted"]
        durations = ears.durations(40)
        assert once(durations[1:]), durations
        assert await ears.until(NEVER_S, lambda: ears.video[-1][0] > killed + 1)
