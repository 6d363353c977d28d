"""A real `AgentSession` of livekit-agents whose voice is tones, with an avatar in a real room."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from tests.integrations.livekit_agents.world import MISSING, SPEAKER, Scene, heard_to, scene
from tests.orchestrator.voice.tones import heard_all, once
from tests.waiting import until

pytestmark = [pytest.mark.livekit, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]
SYMBOLS = 12
LONG = 40


def whole(finished: dict[str, Any]) -> bool:
    """It was heard to its end: the position is what was sent, and that is the tones and a little silence."""
    position = finished["position"]
    return (
        not finished["interrupted"] and abs(position - finished["sent"]) < 0.002 and 0 <= position - SYMBOLS / 10 < 0.1
    )


async def interrupted(playing: Scene, count: int, after_s: float) -> tuple[float, float]:
    """Says something long, interrupts it so long after it began: (the position reported, the position heard)."""
    talker, ears = playing.talker, playing.ears
    ears.forget()
    begun, over = len(talker.of("started")), len(talker.of("finished"))
    await talker.do("say", symbols=LONG)
    await talker.wait("started", begun + 1)
    await asyncio.sleep(after_s)  # the moment of an interruption is anybody's
    await talker.do("interrupt")
    finished = await talker.wait("finished", over + 1)
    assert finished["interrupted"] is True
    assert (await talker.wait("said", count))["interrupted"] is True
    await until(lambda: time.monotonic() - max((at for at, _ in ears.spoken()), default=0.0) > 0.3)
    return finished["position"], heard_to(ears)


@pytest.mark.network
async def test_the_agent_speaks_through_the_avatar_and_is_interrupted(livekit_server: LiveKitAccess) -> None:
    async with scene(livekit_server, agents=2) as playing:
        talker, ears = playing.talker, playing.ears
        avatar = talker.of("ready")[0]["avatar"]
        assert ears.room.remote_participants[avatar].attributes["lk.publish_on_behalf"] == SPEAKER

        await talker.do("say", symbols=SYMBOLS)
        assert await heard_all(ears, SYMBOLS - 1)
        finished = await talker.wait("finished")
        assert whole(finished)
        assert (await talker.wait("said"))["interrupted"] is False
        assert once(ears.durations(SYMBOLS)), "every tone was heard, and once"
        assert {who for track, who in ears.speakers.items() if ears.by_track.get(track)} == {avatar}
        white, onset = (await until(ears.whites))[0], ears.onsets(level=1500)[0]
        assert white - onset == pytest.approx(0, abs=1.0), "the lips begin with the voice"  # a wide bar: see below

        draw = random.Random(6)
        positions = [await interrupted(playing, 2 + n, draw.uniform(0.05, 0.3)) for n in range(5)]
        errors = sorted(abs(reported - heard) for reported, heard in positions)
        assert errors[2] <= 0.3 and errors[-1] <= 1.0, (
            positions
        )  # wide bars: `tests.bench.livekit_agents` has the figures
        assert [len(talker.of(kind)) for kind in ("started", "finished", "said")] == [6, 6, 6]
        assert talker.complaints == []

        session = await playing.session()
        assert session["state"] == "ready" and session["playback"]["segments"] == 6 and session["last_audio_at"]
        refused = await playing.stack.stage.http.post(f"/session/{session['session_id']}/speak", json={"text": "No."})
        assert refused.status_code == 409 and refused.json()["code"] == "speech_elsewhere"
        assert SPEAKER in refused.json()["detail"]

        await paused(playing)
        await worker_dies(playing)

        await talker.do("leave")
        await talker.wait("left")
        session = await playing.session()
        assert session["state"] == "stopped" and session["end_reason"] == "stopped"
        assert talker.complaints == []


async def paused(playing: Scene) -> None:
    """A voice that pauses goes on where it stopped, and is one segment; one that is interrupted meanwhile ends there."""
    talker, ears, over = playing.talker, playing.ears, len(playing.talker.of("finished"))
    ears.forget()
    begun = len(talker.of("started"))
    await talker.do("say", symbols=LONG)
    assert await heard_all(ears, 10, settle_s=0)
    await talker.do("pause")
    await until(lambda: time.monotonic() - ears.spoken()[-1][0] > 0.5)
    stopped = ears.spoken()[-1][1]
    assert stopped < LONG - 5, "what was not heard waits"
    await talker.do("resume")
    assert await heard_all(ears, LONG - 1)
    assert once(ears.durations(LONG)), "every tone was heard, and once"
    finished = await talker.wait("finished", over + 1)
    assert finished["interrupted"] is False and LONG / 10 <= finished["position"] < LONG / 10 + 0.2, finished
    assert len(talker.of("started")) == begun + 1

    ears.forget()
    await talker.do("say", symbols=LONG)
    assert await heard_all(ears, 10, settle_s=0)
    await talker.do("pause")
    await until(lambda: time.monotonic() - ears.spoken()[-1][0] > 0.5)
    await talker.do("interrupt")
    finished = await talker.wait("finished", over + 2)
    assert finished["interrupted"] is True and abs(finished["position"] - heard_to(ears)) < 0.5, finished
    await talker.do("resume")
    assert talker.complaints == []


async def worker_dies(playing: Scene) -> None:
    """In the middle of a sentence: the avatar speaks on elsewhere, where it was."""
    talker, ears, before = playing.talker, playing.ears, len(playing.talker.of("finished"))
    ears.forget()
    await talker.do("say", symbols=LONG)
    assert await heard_all(ears, 10, settle_s=0)
    playing.stack.agent_of(talker.of("ready")[0]).kill()
    assert await heard_all(ears, LONG - 1), "the next worker says the rest"
    finished = await talker.wait("finished", before + 1)
    assert finished["interrupted"] is False and LONG / 10 <= finished["position"] < LONG / 10 + 0.2, finished
    await talker.wait("said", before + 1)
    ears.forget()
    await talker.do("say", symbols=SYMBOLS)
    assert await heard_all(ears, SYMBOLS - 1)
    finished = await talker.wait("finished", before + 2)
    assert whole(finished)
    assert (await playing.session())["moves"] == 1
