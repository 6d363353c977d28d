"""A device that fails under running sessions: they end with a code, the agent is unready, and then runs again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent import engine_pool
from musetalk_agent.engine_pool import EnginePool
from musetalk_agent.engines.base import Flight, PatchRequest
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.errors import EngineFailed
from musetalk_agent.settings import AgentSettings
from musetalk_agent.weights import Manifest, ModelStore
from tests.musetalk_agent.service.served import Agent, agent


class Fragile(PatternEngine):
    """Fails once it has made some frames, as a card does that falls off the bus; made again, it holds."""

    made = 0

    def launch(self, batch: Sequence[PatchRequest]) -> Flight:
        before = Fragile.made
        Fragile.made += len(batch)
        if before < 10 <= Fragile.made:
            raise EngineFailed("the card is gone")
        return super().launch(batch)

    def capacity(self, fps: int) -> int | None:
        return 100 // fps


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fragile, "made", 0)
    monkeypatch.setattr(engine_pool, "PatternEngine", Fragile)
    monkeypatch.setattr(engine_pool, "RESTART_AFTER_S", (0.3,))


async def _health(here: Agent) -> tuple[int, str]:
    answer = await here.http.get("/health")
    return answer.status_code, answer.json()["status"]


async def _speak(here: Agent, session_id: str) -> dict[str, object]:
    """Sends a second of sound; the first failure or end that is told."""
    async with here.link(session_id) as socket, asyncio.timeout(5):
        await socket.send(json.dumps({"type": "segment.start", "segment": 1, "sample_rate": 16000}))
        await socket.send(np.full(16_000, 9000, "<i2").tobytes())
        await socket.send(json.dumps({"type": "segment.end", "segment": 1}))
        while True:
            event: dict[str, object] = json.loads(await socket.recv()).get("event", {})
            if event.get("type") in ("error", "playback.finished"):
                return event


@pytest.mark.usefixtures("fragile")
async def test_sessions_fail_with_a_code_and_new_ones_run_when_the_engine_is_back(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        await here.start("a")
        assert await _health(here) == (200, "ok")
        told = await _speak(here, "a")
        assert (told["type"], told["code"]) == ("error", "engine_failed")
        assert await _health(here) == (503, "engine_failed")
        refused = await here.start("b")
        assert (refused.status_code, refused.json()["code"]) == (503, "engine_failed")
        last = (await here.http.get("/session/a")).json()
        assert (last["state"], last["error"]["code"]) == ("failed", "engine_failed")
        async with asyncio.timeout(5):
            while (await _health(here))[0] != 200:  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.02)
        assert (await here.start("b")).status_code == 200
        assert (await _speak(here, "b"))["type"] == "playback.finished"


@pytest.mark.usefixtures("fragile")
async def test_capacity_is_what_the_engine_was_measured_to_hold(tmp_path: Path) -> None:
    async with agent(tmp_path, max_sessions=3) as here:
        assert (await here.http.get("/health")).json()["capacity"] == {"sessions": 0, "sessions_max": 3}
        assert (await here.start("a", picture={"fps": 50})).status_code == 200
        assert (await here.start("b", picture={"fps": 50})).status_code == 200
        full = await here.start("c", picture={"fps": 50})
        assert (full.status_code, full.json()["code"], full.json()["limit"]) == (503, "at_capacity", 2)
        assert "as many as its device can" in full.json()["detail"]
    async with agent(tmp_path) as here:
        assert (await here.http.get("/health")).json()["capacity"]["sessions_max"] == 4


@pytest.mark.usefixtures("fragile")
async def test_an_engine_too_slow_for_one_session_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fragile, "capacity", lambda self, fps: 0)
    async with agent(tmp_path) as here:
        answer = await here.start("a")
        assert (answer.status_code, answer.json()["code"]) == (503, "engine_unavailable")
        assert "too slow for one session at 25 pictures a second" in answer.json()["detail"]


@pytest.mark.usefixtures("fragile")
async def test_an_engine_that_stays_broken_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_pool, "RESTART_AFTER_S", (0.02, 0.02))
    settings = AgentSettings.model_validate({"agent_api_key": "k", "engine": "pattern", "cache_dir": tmp_path})
    failed, lost = [], asyncio.Event()
    pool = EnginePool(settings, ModelStore(None, Manifest.load()), on_lost=lost.set)
    pool.on_failure = lambda name, error: failed.append((name, error.detail))
    await pool.start()
    try:
        monkeypatch.setattr(Fragile, "warmup", lambda self: (_ for _ in ()).throw(EngineFailed("still gone")))
        monkeypatch.setattr(Fragile, "made", 9)
        batcher = pool.batcher("pattern")
        actor = batcher.engine.open(pattern_bundle(64, 64, 25))
        with pytest.raises(EngineFailed):
            await batcher.submit(PatchRequest(actor, 0, np.zeros(1, np.float32)), 0.0)
        async with asyncio.timeout(5):
            await lost.wait()
        assert failed == [("pattern", "the card is gone")] and pool.lost and not pool.ready
        with pytest.raises(EngineFailed, match="starting again"):
            pool.batcher("pattern")
    finally:
        await pool.aclose()


async def test_debug_tells_what_the_engine_did(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        await here.start("a")
        await _speak(here, "a")
        told = (await here.http.get("/debug")).json()
        assert told["engine"] == "pattern" and told["engine_note"] is None
        figures = told["engine_figures"]
        assert figures["frames"] >= 25
        assert sum(int(size) * count for size, count in figures["batches"].items()) == figures["frames"]
        assert told["files"]["musetalkV15/unet.pth"]["exists"] is False and told["unet_config"] is None
