"""What `serve` hands to its server: how it drains, and where it listens. The server itself is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from orchestrator.__main__ import main
from tests.fakes.stage import LIVEKIT_SECRET

ENVIRONMENT = {
    "LIVEKIT_URL": "ws://127.0.0.1:9",
    "LIVEKIT_API_KEY": "devkey",
    "LIVEKIT_API_SECRET": LIVEKIT_SECRET,
    "ORCHESTRATOR_API_KEY": "key-of-the-tests",
    "AGENT_URL": "http://127.0.0.1:9",
    "AGENT_API_KEY": "agent-key-of-the-tests",
    "VOICE_STANDBY": "off",
    "DRAIN_S": "7",
}


class Sessions:
    """Speech that goes on until `over` is set."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.within_s: list[float] = []

    async def drain(self, within_s: float) -> None:
        self.within_s.append(within_s)
        await self.over.wait()


@pytest.mark.parametrize("given_up", [False, True])
def test_the_events_end_when_it_has_drained_and_not_when_that_is_given_up(
    given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    class Server:
        def __init__(
            self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]], listens: Callable[[int], object]
        ) -> None:
            self.config, self.drain, self.listens = config, drain, listens

        def run(self) -> None:
            asyncio.run(self.serve())

        async def serve(self) -> None:
            sessions, app = Sessions(), self.config.app
            events = SimpleNamespace(close=lambda: calls.append("closed"))
            address = SimpleNamespace(listens=calls.append)
            context: Any = SimpleNamespace(sessions=sessions, events=events, address=address)
            app.state.context = context  # type: ignore[union-attr]  # it is the application that was made
            self.listens(self.config.port)
            draining = asyncio.ensure_future(self.drain())
            await asyncio.sleep(0)
            assert sessions.within_s == [7.0] and calls == [4321]
            draining.cancel() if given_up else sessions.over.set()
            await asyncio.wait({draining})
            assert draining.cancelled() is given_up

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("orchestrator.serving.OrchestratorServer", Server)
    monkeypatch.setattr("musetalk_agent.protocol.logs.configure", lambda _: None)
    assert main(["serve", "--host", "127.0.0.1", "--port", "4321"]) == 0
    assert calls == ([4321] if given_up else [4321, "closed"])
