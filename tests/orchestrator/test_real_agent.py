"""The orchestrator with the real agent as a process of its own, and a network between them that is cut."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from musetalk_tools.processes import Child, free_port
from tests.fakes.agent_server import AGENT_KEY
from tests.fakes.relay import Relay, relay
from tests.fakes.stage import Stage, stage
from tests.waiting import NEVER_S, until


@pytest.fixture
async def joined() -> AsyncIterator[tuple[Stage, Relay]]:
    """Orchestrator, relay, agent; no room is joined (`connect_livekit` false), so nothing else is needed."""
    port = free_port()
    command = [sys.executable, "-m", "musetalk_agent", "serve", "--host", "127.0.0.1", "--port", str(port)]
    agent = Child("agent", command, {"AGENT_API_KEY": AGENT_KEY, "AGENT_ENGINE": "pattern", "LOG_LEVEL": "WARNING"})
    await agent.start()
    try:
        await agent.ready(f"http://127.0.0.1:{port}/health", NEVER_S)
        async with relay(f"http://127.0.0.1:{port}") as between, stage(agent_url=between.url) as running:
            yield running, between
    finally:
        await agent.stop()


def tone(seconds: float) -> bytes:
    return (np.sin(np.arange(round(seconds * 16000)) * 0.3) * 8000).astype("<i2").tobytes()


async def test_twenty_cuts_on_the_way_to_the_agent_lose_and_double_nothing(joined: tuple[Stage, Relay]) -> None:
    running, between = joined
    pcm = tone(2.4)
    async with running.live(connect_livekit=False) as (started, line):
        live = running.app.state.context.sessions.registry.get(started["session_id"]).live
        await line.say("audio.start")
        for index in range(20):
            await line.socket.send(pcm[index * 3840 : (index + 1) * 3840])
            await until(lambda: live.link_connected and live.link_drops == index)  # noqa: B023
            between.cut()
        await line.say("audio.end")
        finished = await line.wait("playback.finished")
        assert finished["position_s"] == pytest.approx(2.4, abs=0.001) and finished["interrupted"] is False
        assert [len(line.of(kind)) for kind in ("playback.started", "playback.finished", "error")] == [1, 1, 0]
        (session,) = (await running.http.get("/debug/musetalk")).json()["sessions"]
        counts = {stage["stage"]: stage["count"] for stage in session["funnel"]}
        assert counts["samples"] == 38_400
        assert live.link_drops >= 20


async def test_interrupt_reaches_the_agent_and_the_next_utterance_is_heard(joined: tuple[Stage, Relay]) -> None:
    running, _ = joined
    async with running.live(connect_livekit=False) as (started, line):
        live = running.app.state.context.sessions.registry.get(started["session_id"]).live
        await line.socket.send(tone(10))
        await line.wait("playback.started")
        await until(lambda: live.position(time.monotonic())[1] > 0.3)
        dropped = (await running.http.post(f"/session/{started['session_id']}/interrupt")).json()["dropped_s"]
        finished = await line.wait("playback.finished")
        assert finished["interrupted"] is True and 0.2 < finished["position_s"] < 10
        assert dropped + finished["position_s"] == pytest.approx(10, abs=1)
        assert (await line.wait("cleared"))["dropped_s"] == pytest.approx(dropped)
        await line.say("audio.start")
        await line.socket.send(tone(0.4))
        await line.say("audio.end")
        assert (await line.wait("playback.finished", count=2))["position_s"] == pytest.approx(0.4)
        state = (await running.http.post(f"/session/{started['session_id']}/stop")).json()
        assert state["state"] == "stopped" and state["playback"]["segments"] == 2
