"""What a signal does to a server that drains: it ends when nothing stands in its way, and at once at the second one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import uvicorn
from fastapi import FastAPI

from orchestrator.serving import OrchestratorServer, server_config
from orchestrator.settings import Settings
from tests.fakes.stage import LIVEKIT_SECRET
from tests.virtual_loop import virtually


def server(drain: Callable[[], Awaitable[None]]) -> OrchestratorServer:
    config = uvicorn.Config(FastAPI(openapi_url=None), log_config=None, lifespan="off")
    config.load()
    return OrchestratorServer(config, drain)


async def ticks(serving: OrchestratorServer, count: int) -> int | None:
    """Ten a second; the number of the one that ends the server."""
    for n in range(count):
        if await serving.on_tick(n):
            return n
        await asyncio.sleep(0.1)
    return None


@virtually
async def test_it_ends_when_it_has_drained_and_drains_once() -> None:
    begun = list[float]()

    async def drain() -> None:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(2.05)

    serving = server(drain)
    assert await ticks(serving, 5) is None and begun == []
    serving.handle_exit(signal.SIGTERM, None)
    assert await ticks(serving, 100) == 21 and len(begun) == 1
    assert serving.should_exit and not serving.force_exit


@virtually
async def test_a_second_signal_does_not_wait_for_the_first() -> None:
    async def drain() -> None:
        await asyncio.sleep(1000.0)

    serving = server(drain)
    serving.handle_exit(signal.SIGTERM, None)
    assert await ticks(serving, 10) is None
    serving.handle_exit(signal.SIGTERM, None)
    assert await ticks(serving, 10) == 0
    assert serving._draining is not None
    serving._draining.cancel()  # as `shutdown` does
    await asyncio.wait({serving._draining})


@virtually
async def test_draining_that_breaks_ends_it_all_the_same() -> None:
    async def drain() -> None:
        raise RuntimeError("a bug")

    serving = server(drain)
    serving.handle_exit(signal.SIGINT, None)
    assert await ticks(serving, 10) == 1


def test_how_it_is_served() -> None:
    settings = Settings(
        livekit_url="ws://x",
        livekit_api_key="devkey",
        livekit_api_secret=LIVEKIT_SECRET,
        orchestrator_api_key="key-of-the-tests",
        agent_url=["http://127.0.0.1:1"],
        agent_api_key="agent-key-of-the-tests",
        audio_message_bytes=2000,
    )
    config = server_config(FastAPI(), settings, host="127.0.0.1", port=1)
    assert config.access_log is False, "addresses carry tokens"
    assert config.ws_max_size == 8000, "a message over the limit is answered with a code before the library cuts"
    assert config.ws_ping_timeout is None and config.ws_per_message_deflate is False
    assert config.server_header is False
    assert config.timeout_keep_alive > 60, "the client or a proxy closes first: else a request may be on its way"
