"""The demo as a newcomer starts it: a face in a room that speaks text and PCM, and nothing left behind."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import psutil
import pytest

from tests.bench.stack import Demo, demo
from tests.musetalk_agent.publishers.spoken_code import heard_slots, spoken_code
from tests.waiting import NEVER_S, until

pytestmark = pytest.mark.livekit


async def _events(live_socket: object, last: str) -> list[str]:
    kinds: list[str] = []
    async with asyncio.timeout(NEVER_S):
        while not kinds or kinds[-1] != last:
            kinds.append(json.loads(await live_socket.recv())["type"])  # type: ignore[attr-defined]
    return kinds


async def _speaks_pcm(stack: Demo) -> None:
    pcm = spoken_code(15, 16_000)
    async with stack.live(avatar_id="demo") as live:
        assert live.started["engine"] == "warp" and live.started["avatar"]["face_px"] > 150
        begun = asyncio.get_running_loop().time()
        await live.send(pcm, paced=False, block=3200)
        await live.say("audio.end")
        kinds = await _events(live.socket, "playback.finished")
        assert kinds.count("playback.started") == 1
        # what is heard is what was said, slot by slot; a busy machine's jitter buffer may garble some

        def understood() -> bool:
            heard = heard_slots(
                np.concatenate([b for at, b in live.viewer.sound if at > begun] or [np.zeros(800)]), 16_000
            )
            return len(set(heard) & set(range(15))) >= 10

        await until(understood)
        statistics = await live.statistics()
        assert statistics["spoken"] > 0
        diagnosis = (await stack.http.get(f"/session/{live.started['session_id']}")).json()["diagnosis"]
        assert diagnosis["code"] in ("ok", "engine_slow")  # the engine of a busy machine is slow


async def _speaks_text_and_is_interrupted(stack: Demo) -> None:
    voices = (await stack.http.get("/voices")).json()["voices"]
    if not any(v["provider"] == "piper" for v in voices):
        pytest.skip("the [voice] extra is not installed")
    async with stack.live(avatar_id="demo") as live:
        begun = asyncio.get_running_loop().time()
        text = "Hello there. I am a face in a room, and I could talk about the moon for a very long time."
        answer = await stack.http.post(f"/session/{live.started['session_id']}/speak", json={"text": text})
        assert answer.status_code == 202 and answer.json()["segment"] == 1
        await until(lambda: len(live.viewer.heard(begun)) > 40)
        await live.interrupt()
        await until(lambda: max(int(np.abs(b.astype(int)).max()) for _, b in live.viewer.sound[-50:]) < 1500)
        assert len(live.viewer.heard(begun)) < 450  # the text takes more than five seconds to say


async def _room_closes_behind(stack: Demo) -> None:
    async with stack.live(avatar_id="demo") as live:
        identity = live.started["avatar_identity"]
        await stack.http.post(f"/session/{live.started['session_id']}/stop")
        await until(lambda: identity in live.viewer.gone)
    sessions = (await stack.http.get("/sessions")).json()["sessions"]
    assert not [s for s in sessions if s["state"] not in ("stopped", "failed")]


@pytest.mark.network
async def test_a_newcomers_quarter_of_an_hour() -> None:
    async with demo() as stack:
        family = [psutil.Process(stack.process.pid), *psutil.Process(stack.process.pid).children(recursive=True)]
        assert len(family) >= 4
        await _speaks_pcm(stack)
        await _speaks_text_and_is_interrupted(stack)
        await _room_closes_behind(stack)
    _, alive = psutil.wait_procs(family, timeout=NEVER_S)
    assert alive == []
