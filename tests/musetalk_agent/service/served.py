"""The agent's service as a real server on a free port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import websockets

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.protocol.http import WARMING
from musetalk_agent.service.agent_app import create_app, server_config
from musetalk_tools.processes import free_port
from tests.fakes.serving import BRIEF
from tests.waiting import NEVER_S, until

KEY = "agent-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@dataclass
class Agent:
    http: httpx.AsyncClient
    port: int

    async def start(self, session_id: str = "s1", **more: Any) -> httpx.Response:
        body = {
            "session_id": session_id,
            "room": "r",
            "livekit_url": "ws://127.0.0.1:1",
            "livekit_token": "unused",
            "avatar": {},
            "engine": "pattern",
            "connect_livekit": False,
            **more,
        }
        return await self.http.post("/session/start", json=body)

    def link(self, session_id: str = "s1", after: int = 0) -> websockets.connect:
        url = f"ws://127.0.0.1:{self.port}/audio?session_id={session_id}&events_after={after}"
        # A test need not read what comes: a queue that is full keeps the answer to its close away, for ten seconds.
        return websockets.connect(url, additional_headers=HEADERS, proxy=None, open_timeout=NEVER_S, max_queue=None)


async def answers(http: httpx.AsyncClient) -> None:
    """Returns when the server says anything but that it warms up."""

    async def warm() -> bool:
        try:
            return bool((await http.get("/health")).json()["status"] != WARMING)
        except httpx.TransportError:
            return False

    await until(warm)


@asynccontextmanager
async def agent(cache: Path, **settings: Any) -> AsyncIterator[Agent]:
    port = free_port()
    app = create_app(AgentSettings(**{"agent_api_key": KEY, "engine": "pattern", "cache_dir": cache, **settings}))
    server = uvicorn.Server(server_config(app, host="127.0.0.1", port=port))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,method-assign]
    task = asyncio.create_task(server._serve())
    try:
        await until(lambda: server.started and (app.state.warmup.over or app.state.warmup.error))
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(
            base_url=base, headers=HEADERS, timeout=NEVER_S, trust_env=False, limits=BRIEF
        ) as http:
            yield Agent(http, port)
    finally:
        server.should_exit = True
        await task
