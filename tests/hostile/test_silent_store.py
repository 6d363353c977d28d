"""A Redis that accepts and says nothing: start, speech and stop answer in time, and sessions that run go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest

from tests.fakes.stage import Stage, stage
from tests.servers.redis import RedisServer, redis_server
from tests.waiting import NEVER_S, until

BODY = {"room": "r", "engine": "pattern"}


@contextmanager
def silent(redis: RedisServer) -> Iterator[None]:
    """Redis says nothing meanwhile, and is waited for a moment only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.store.redis_store._CALL_S", 0.6)
        redis.freeze()
        yield
        redis.thaw()


@pytest.fixture
async def shared(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Stage, RedisServer]]:
    monkeypatch.setattr("orchestrator.session.journal.HAND_OVER_S", 0.3)
    monkeypatch.setattr("orchestrator.session.journal.RENEW_S", 0.1)
    monkeypatch.setattr("orchestrator.session.journal.RETRY_S", 0.1)
    async with redis_server() as server:
        async with asyncio.timeout(NEVER_S), stage(redis_url=server.url) as made:
            yield made, server
        server.thaw()


async def test_start_speech_and_stop_while_redis_is_silent(shared: tuple[Stage, RedisServer]) -> None:
    running, redis = shared
    async with running.live() as (started, line), AsyncExitStack() as meanwhile:
        meanwhile.enter_context(silent(redis))
        refused = await running.http.post("/session/start", json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert "Retry-After" in refused.headers
        assert set(running.agent.sessions) == {started["session_id"]}, "nothing is left of the start"
        await line.say("audio.start")
        await line.socket.send(bytes(3200))
        await line.say("audio.end")
        assert not (await line.wait("playback.finished"))["interrupted"]
        path = f"/session/{started['session_id']}"
        assert (await running.http.get(path)).json()["state"] == "ready"
        health = await running.http.get("/health")
        assert (health.status_code, health.json()["store"]) == (200, "failing")
        unknown = await running.http.get("/session/ses_unknown")
        assert (unknown.status_code, unknown.json()["code"]) == (503, "store_unavailable")
        assert [one["session_id"] for one in (await running.http.get("/sessions")).json()["sessions"]] == [
            started["session_id"]
        ]
        assert (await running.http.post(f"{path}/stop")).json()["state"] == "stopped"
        assert await line.closed() == 1001

    async def well() -> bool:
        return bool((await running.http.get("/health")).json()["store"] == "ok")

    async def ended() -> bool:
        record = await running.app.state.context.journal.store.load(started["session_id"])
        return record is not None and record.ended

    await until(well)
    await until(ended)
    assert (await running.http.post("/session/start", json=BODY)).status_code == 200


async def test_a_session_outlives_the_silence_and_the_end_of_the_process_does_not_wait_for_it(
    shared: tuple[Stage, RedisServer],
) -> None:
    running, redis = shared
    started = await running.start()
    context = running.app.state.context
    with silent(redis):
        await until(lambda: context.journal.failing)
    await until(lambda: not context.journal.failing)
    assert await context.journal.store.holder(started["session_id"]) == context.journal.owner
    redis.freeze()  # what follows is the end of the service
