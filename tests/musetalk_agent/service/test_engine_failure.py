"""A device that fails under running sessions: they end with a code, the agent is unready, and then runs again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from musetalk_agent import engine_pool
from musetalk_agent.__main__ import main
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.engine_pool import EnginePool
from musetalk_agent.engines.interface import InFlightBatch, PatchRequest
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.errors import EngineFailed, EngineUnavailable
from musetalk_agent.weights import Manifest, ModelStore
from musetalk_tools.processes import free_port
from tests.musetalk_agent.service.served import HEADERS, KEY, Agent, agent, answers
from tests.waiting import NEVER_S, until


class Fragile(PatternEngine):
    """Fails once it has made some frames, as a card does that falls off the bus; made again, it holds."""

    made = 0

    def launch(self, batch: Sequence[PatchRequest]) -> InFlightBatch:
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
    """Sends a second of sound; the first failure or end that is reported."""
    async with here.link(session_id) as socket, asyncio.timeout(NEVER_S):
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
        reported = await _speak(here, "a")
        assert (reported["type"], reported["code"]) == ("error", "engine_failed")
        assert await _health(here) == (503, "engine_failed")
        refused = await here.start("b")
        assert (refused.status_code, refused.json()["code"]) == (503, "engine_failed")
        last = (await here.http.get("/session/a")).json()
        assert (last["state"], last["error"]["code"]) == ("failed", "engine_failed")

        async def well() -> bool:
            return await _health(here) == (200, "ok")

        await until(well)
        assert (await here.start("b")).status_code == 200
        assert (await _speak(here, "b"))["type"] == "playback.finished"


@pytest.mark.usefixtures("fragile")
async def test_capacity_is_what_the_engine_was_measured_to_hold(tmp_path: Path) -> None:
    async with agent(tmp_path, max_sessions=3) as here:
        capacity = (await here.http.get("/health")).json()["capacity"]
        assert (capacity["sessions"], capacity["sessions_max"], capacity["limited_by"]) == (0, 3, "setting")
        assert (await here.start("a", picture={"fps": 50})).status_code == 200
        assert (await here.start("b", picture={"fps": 50})).status_code == 200
        full = await here.start("c", picture={"fps": 50})
        assert (full.status_code, full.json()["code"], full.json()["limit"]) == (503, "at_capacity", 2)
        assert "as many as its device can" in full.json()["detail"]
    async with agent(tmp_path) as here:
        capacity = (await here.http.get("/health")).json()["capacity"]
        assert (capacity["sessions_max"], capacity["card"], capacity["limited_by"]) == (4, 4, "card")


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
        engine_session = batcher.engine.open(pattern_bundle(64, 64, 25))
        with pytest.raises(EngineFailed):
            await batcher.submit(PatchRequest(engine_session, 0, np.zeros(1, np.float32)), 0.0)
        async with asyncio.timeout(NEVER_S):
            await lost.wait()
        assert failed == [("pattern", "the card is gone")] and pool.lost and not pool.ready
        with pytest.raises(EngineFailed, match="starting again"):
            pool.batcher("pattern")
    finally:
        await pool.aclose()


async def _fail_again(pool: EnginePool, times: int) -> None:
    """Has the engine fail on its first frame, so often, after each restart."""
    for _ in range(times):
        await until(lambda: pool.ready)
        batcher = pool.batcher("pattern")
        engine_session = batcher.engine.open(pattern_bundle(64, 64, 25))
        with pytest.raises(EngineFailed):
            await batcher.submit(PatchRequest(engine_session, 0, np.zeros(1, np.float32)), 0.0)
        await asyncio.sleep(0)  # the pool hears of it


@pytest.mark.parametrize("within_s", [600.0, 0.0])
async def test_an_engine_that_starts_again_each_time_and_fails_on_its_first_frame_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within_s: float
) -> None:
    """Unless the failures are far apart (`within_s` 0)."""

    class Relapsing(PatternEngine):
        def launch(self, batch: Sequence[PatchRequest]) -> InFlightBatch:
            raise EngineFailed("the card is gone")

    monkeypatch.setattr(engine_pool, "PatternEngine", Relapsing)
    monkeypatch.setattr(engine_pool, "RESTART_AFTER_S", (0.0,))
    monkeypatch.setattr(engine_pool, "FAILURES_WITHIN_S", within_s)
    settings = AgentSettings.model_validate({"agent_api_key": "k", "engine": "pattern", "cache_dir": tmp_path})
    pool = EnginePool(settings, ModelStore(None, Manifest.load()))
    await pool.start()
    try:
        await _fail_again(pool, engine_pool.FAILURES_MOST + 1)
        await until(lambda: pool.lost or pool.ready)
        assert pool.lost == (within_s > 0)
    finally:
        await pool.aclose()


async def test_debug_tells_what_the_engine_did(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        await here.start("a")
        await _speak(here, "a")
        reported = (await here.http.get("/debug")).json()
        assert reported["engine"] == "pattern" and reported["engine_note"] is None
        figures = reported["engine_figures"]
        assert figures["frames"] >= 25
        assert sum(int(size) * count for size, count in figures["batches"].items()) == figures["frames"]
        assert reported["files"]["musetalkV15/unet.pth"]["exists"] is False and reported["unet_config"] is None


class Doomed(PatternEngine):
    """Runs until its first frame, then as a card does whose context is broken: nothing of it works any more."""

    broken = False

    def __init__(self) -> None:
        super().__init__()
        if Doomed.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def launch(self, batch: Sequence[PatchRequest]) -> InFlightBatch:
        Doomed.broken = True
        raise EngineFailed("illegal address")

    def close(self) -> None:
        if os.environ["CLOSE"] == "hangs":
            threading.Event().wait()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def doomed_agent() -> int:
    """`musetalk-agent serve` with that engine."""
    engine_pool.PatternEngine = Doomed  # type: ignore[misc]
    engine_pool.RESTART_AFTER_S = (0.01, 0.01)
    return main()


@pytest.mark.parametrize("close", ["raises", "hangs"])
async def test_a_process_whose_engine_is_lost_ends_with_70(tmp_path: Path, close: str) -> None:
    port = free_port()
    environment = {**os.environ, "AGENT_API_KEY": KEY, "AGENT_ENGINE": "pattern", "CLOSE": close}
    environment |= {"AVATAR_CACHE_DIR": str(tmp_path), "AGENT_DRAIN_S": "300"}
    source = "import sys; from tests.musetalk_agent.service.test_engine_failure import doomed_agent; sys.exit(doomed_agent())"
    command = [sys.executable, "-c", source, "serve", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, headers=HEADERS, timeout=NEVER_S, trust_env=False) as http:
            await answers(http)
            here = Agent(http, port)
            assert (await here.start("a")).status_code == 200
            reported = await _speak(here, "a")
            assert reported["code"] == "engine_failed"
        async with asyncio.timeout(NEVER_S):
            assert await process.wait() == 70
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Absent(PatternEngine):
    """Does not start."""

    def warmup(self) -> None:
        raise RuntimeError("out of memory on the card")


def _pool(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch, **makers: type[PatternEngine]) -> EnginePool:
    monkeypatch.setattr(EnginePool, "_look_for_musetalk", lambda self: None)
    settings = AgentSettings.model_validate({"agent_api_key": "k", "engine": engine, "cache_dir": tmp_path})
    pool = EnginePool(settings, ModelStore(None, Manifest.load()))
    pool._makers.update(makers)
    return pool


async def test_auto_takes_the_next_engine_when_one_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = _pool(tmp_path, "auto", monkeypatch, musetalk=Absent, warp=PatternEngine)
    assert pool.default == "musetalk"
    await pool.start()
    try:
        assert pool.default == "warp" and pool.resolve("auto") == "warp" and pool.ready
        note = pool.note(None)
        assert note is not None and "'warp', not MuseTalk" in note and "out of memory on the card" in note
        with pytest.raises(EngineUnavailable, match="did not start: out of memory"):
            pool.resolve("musetalk")
        assert pool.batcher("warp").engine.name == "pattern"
    finally:
        await pool.aclose()


async def test_an_engine_that_no_session_needs_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _pool(tmp_path, "musetalk", monkeypatch, musetalk=PatternEngine, warp=Absent, pattern=Absent)
    await pool.start()
    try:
        assert pool.default == "musetalk" and pool.ready
        for name in ("warp", "pattern"):
            with pytest.raises(EngineUnavailable, match="out of memory"):
                pool.resolve(name)
    finally:
        await pool.aclose()


@pytest.mark.parametrize("engine", ["musetalk", "auto"])
async def test_a_process_without_the_engine_it_was_given_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    warp = PatternEngine if engine == "musetalk" else Absent
    pool = _pool(tmp_path, engine, monkeypatch, musetalk=Absent, warp=warp)
    try:
        with pytest.raises((RuntimeError, EngineUnavailable), match="out of memory"):
            await pool.start()
    finally:
        await pool.aclose()


async def test_a_broken_torch_does_not_keep_warp_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: EnginePool) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(EnginePool, "_look_for_musetalk", broken)
    settings = AgentSettings.model_validate({"agent_api_key": "k", "cache_dir": tmp_path})
    pool = EnginePool(settings, ModelStore(None, Manifest.load()))
    assert pool.default == "warp" and "libcudart" in (pool.note(None) or "")
