"""Two real agents behind the router, eight sessions that speak, one agent killed."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import httpx
import numpy as np
import pytest

from tests.fakes.stage import Line, Stage, stage
from tests.fakes.sticky_router import StickyRouter, router_server
from tests.orchestrator.voice.stack import Agent, unhurried
from tests.waiting import NEVER_S, until

RATE = 16_000
SPEECH_S = 6.0
SESSIONS = 8


async def _speak(line: Line) -> None:
    """A tone at its own pace."""
    pcm = (np.sin(np.arange(round(SPEECH_S * RATE)) * 0.3) * 8000).astype("<i2")
    begun, step = time.monotonic(), RATE // 5
    await line.say("audio.start")
    for at in range(0, len(pcm), step):
        await asyncio.sleep(max(0.0, begun + at / RATE - time.monotonic()))  # its pace
        await line.socket.send(pcm[at : at + step].tobytes())
    await line.say("audio.end")


def _instance(running: Stage, session_id: str) -> str:
    pool = running.app.state.context.pool
    return str(pool._held[session_id].instance)


@pytest.mark.network
async def test_sessions_stay_where_they_are_and_those_of_a_dead_container_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(unhurried())
        agents = [Agent(), Agent()]
        for agent in agents:
            await agent.start()
            stack.push_async_callback(agent.stop)
        await asyncio.gather(*(agent.ready(agent.url + "/health", NEVER_S) for agent in agents))
        router = StickyRouter([agent.url for agent in agents], max_concurrency=SESSIONS)
        url = await stack.enter_async_context(router.running())
        server = await stack.enter_async_context(router_server(url, monkeypatch))
        monkeypatch.setattr("modal.Server.from_name", lambda app, name: server)
        running = await stack.enter_async_context(stage(agent_pool="modal", agent_url=[]))
        lines: dict[str, Line] = {}
        for n in range(SESSIONS):
            body: dict[str, Any] = {"connect_livekit": False, "width": 128, "height": 128, "fps": 15, "room": f"r{n}"}
            started = await running.start(**body)
            lines[started["session_id"]] = await stack.enter_async_context(running.audio(started["audio_url"]))
        homes = {session_id: _instance(running, session_id) for session_id in lines}
        assert sorted(list(homes.values()).count(home) for home in set(homes.values())) == [4, 4]

        speaking = asyncio.gather(*(_speak(line) for line in lines.values()))
        for line in lines.values():
            await line.wait("playback.started")
        victim = homes[next(iter(lines))]
        health = {agent: await _instance_of(running, agent) for agent in agents}
        dead = next(agent for agent in agents if health[agent] == victim)
        dead.kill()
        theirs = [session_id for session_id, home in homes.items() if home == victim]
        others = [session_id for session_id in homes if session_id not in theirs]
        for session_id in theirs:
            await _moved(lines[session_id])
        await speaking
        for session_id, line in lines.items():
            finished = await line.wait("playback.finished")
            assert finished["position_s"] == pytest.approx(SPEECH_S, abs=0.01) and not finished["interrupted"]
            reported = (await running.http.get(f"/session/{session_id}")).json()
            assert reported["moves"] == (1 if session_id in theirs else 0)
        audio = (await running.http.get("/debug/audio")).json()["sessions"]
        assert {s["session_id"]: s["agent_link"]["drops"] for s in audio if s["session_id"] in others} == dict.fromkeys(
            others, 0
        )
        assert all(lines[session_id].of("session.state") == [] for session_id in others)
        assert all(len(place.requests) == 1 for place in router.places.values()), "every request at one container"
        alive = {agent.url for agent in agents if agent is not dead}
        await until(lambda: {place.container for place in router.places.values() if place.in_flight} == alive)
        debug = (await running.http.get("/debug/musetalk")).json()
        assert sorted(s["session_id"] for s in debug["sessions"]) == sorted(lines), "one container, asked once"
        for session_id in lines:
            await running.http.post(f"/session/{session_id}/stop")
        await running.app.state.context.pool.aclose()
        assert not [place for place in router.places.values() if place.container != dead.url]


async def _moved(line: Line) -> None:
    while not [m for m in line.of("session.state") if m.get("reason") == "moved"]:
        await line.wait("session.state", count=len(line.of("session.state")) + 1)


async def _instance_of(running: Stage, agent: Agent) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=NEVER_S) as http:
        return str((await http.get(agent.url + "/health")).json()["instance"])
