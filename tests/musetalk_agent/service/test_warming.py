"""The port is open while the engine is made: what it says then, and how such a start ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.errors import EngineUnavailable
from musetalk_agent.factory import Factory
from musetalk_agent.service.agent_app import create_app, server_config
from musetalk_tools.processes import free_port
from tests.musetalk_agent.service.served import HEADERS, KEY, Agent
from tests.waiting import NEVER_S, until


@asynccontextmanager
async def cold(tmp_path: Path) -> AsyncIterator[tuple[Agent, Any, uvicorn.Server]]:
    """An agent that listens, whatever its engine does."""
    port = free_port()
    app = create_app(AgentSettings.model_validate({"agent_api_key": KEY, "engine": "pattern", "cache_dir": tmp_path}))
    server = uvicorn.Server(server_config(app, host="127.0.0.1", port=port))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,method-assign]
    task = asyncio.create_task(server._serve())
    try:
        await until(lambda: server.started)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=NEVER_S, trust_env=False) as http:
            yield Agent(http, port), app, server
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Engines start when it is set."""
    opened, start = asyncio.Event(), Factory.start

    async def later(factory: Factory) -> None:
        await opened.wait()
        await start(factory)

    monkeypatch.setattr(Factory, "start", later)
    return opened


async def test_health_says_warming_and_no_session_starts_before(tmp_path: Path, gate: asyncio.Event) -> None:
    async with cold(tmp_path) as (here, app, _):
        health = await here.http.get("/health")
        reported = health.json()
        assert (health.status_code, reported["status"], reported["engine"]) == (503, "warming", "pattern")
        assert "'pattern' is loaded and measured" in reported["engine_note"]
        refused = await here.start()
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready") and refused.headers["retry-after"]
        assert (await here.http.get("/debug")).status_code == 200
        gate.set()
        await until(lambda: app.state.warmup.over)
        warm = await here.http.get("/health")
        assert (warm.status_code, warm.json()["status"], warm.json()["engine_note"]) == (200, "ok", None)
        assert (await here.start()).status_code == 200


async def test_a_start_that_fails_ends_the_server_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(factory: Factory) -> None:
        await asyncio.sleep(0)
        raise EngineUnavailable("no memory")

    monkeypatch.setattr(Factory, "start", fails)
    async with cold(tmp_path) as (_, app, server):
        await until(lambda: app.state.warmup.error is not None)
        app.state.warmup.on_failed = lambda: setattr(server, "should_exit", True)
        assert str(app.state.warmup.error) == "no memory" and not app.state.warmup.over


async def test_an_agent_that_is_asked_to_end_while_it_warms_up_ends(tmp_path: Path, gate: asyncio.Event) -> None:
    async with asyncio.timeout(NEVER_S):
        async with cold(tmp_path) as (_, app, server):
            server.should_exit = True
        assert not app.state.warmup.over and app.state.warmup.error is None
