"""SIGTERM on a real agent: its sessions may end or be moved elsewhere, and it does not wait for ever."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from musetalk_tools.processes import free_port
from tests.musetalk_agent.service.served import HEADERS, KEY, Agent, answers
from tests.musetalk_agent.stand import tone
from tests.waiting import NEVER_S


@asynccontextmanager
async def process(cache: Path, drain_s: float) -> AsyncIterator[tuple[asyncio.subprocess.Process, Agent]]:
    port = free_port()
    environment = {
        **os.environ,
        "AGENT_API_KEY": KEY,
        "AGENT_ENGINE": "pattern",
        "AGENT_DRAIN_S": str(drain_s),
        "AVATAR_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-m", "musetalk_agent", "serve", "--port", str(port)]
    made = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, headers=HEADERS, timeout=NEVER_S, trust_env=False) as http:
            await answers(http)
            yield made, Agent(http, port)
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


async def _message(socket: websockets.ClientConnection, kind: str, **fields: Any) -> dict[str, Any]:
    async with asyncio.timeout(NEVER_S):
        while True:
            message: dict[str, Any] = json.loads(await socket.recv())
            event = message.get("event", message)
            if event["type"] == kind and all(event[name] == value for name, value in fields.items()):
                return event  # type: ignore[no-any-return]


async def test_a_draining_agent_asks_to_move_and_ends_with_its_last_session(tmp_path: Path) -> None:
    async with process(tmp_path, drain_s=60) as (made, agent):
        await agent.start()
        async with agent.link() as socket:
            await _message(socket, "link.ack", draining=False)
            await socket.send('{"type":"segment.start","segment":1,"sample_rate":16000}')
            await socket.send(tone(0.5).tobytes())
            made.send_signal(signal.SIGTERM)
            await _message(socket, "link.ack", draining=True)
            health = await agent.http.get("/health")
            assert (health.status_code, health.json()["status"], health.json()["draining"]) == (503, "draining", True)
            refused = await agent.start("s2")
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert int(refused.headers["Retry-After"]) > 0
            await socket.send('{"type":"segment.end","segment":1}')  # what is being said is said to its end
            assert (await _message(socket, "playback.finished"))["position_s"] == 0.5
            assert made.returncode is None
            assert (await agent.http.post("/session/s1/stop")).json()["state"] == "stopped"
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await _message(socket, "never")
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        async with asyncio.timeout(NEVER_S):
            assert await made.wait() == 0


async def test_an_idle_agent_ends_at_once(tmp_path: Path) -> None:
    async with process(tmp_path, drain_s=300) as (made, _):
        made.send_signal(signal.SIGTERM)
        async with asyncio.timeout(NEVER_S):
            assert await made.wait() == 0


@pytest.mark.parametrize(("drain_s", "signals"), [(0.5, 1), (300, 2)])
async def test_time_and_a_second_signal_end_it_with_sessions(tmp_path: Path, drain_s: float, signals: int) -> None:
    async with process(tmp_path, drain_s) as (made, agent):
        await agent.start()
        async with agent.link() as socket:
            made.send_signal(signal.SIGTERM)
            await _message(socket, "link.ack", draining=True)
            if signals == 2:
                made.send_signal(signal.SIGTERM)
            async with asyncio.timeout(NEVER_S):
                await made.wait()
