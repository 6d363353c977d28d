"""Two real agents, a real SFU, the orchestrator, and a listener."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from musetalk_tools.processes import Child, free_port
from tests.fakes.agent_server import AGENT_KEY
from tests.fakes.stage import Line, Stage, stage
from tests.orchestrator.voice.tones import Ears
from tests.viewer import RATE, join_token
from tests.waiting import NEVER_S, until

ROOM = "stage"


AGENT_ENVIRONMENT = {"AGENT_API_KEY": AGENT_KEY, "AGENT_ENGINE": "pattern", "LOG_LEVEL": "WARNING"}


def agent_command() -> tuple[list[str], str]:
    """Program and arguments of an agent on a free port, and its base URL."""
    port = free_port()
    command = [sys.executable, "-m", "musetalk_agent", "serve", "--host", "127.0.0.1", "--port", str(port)]
    return command, f"http://127.0.0.1:{port}"


class Agent(Child):
    """An agent's process, which can be killed."""

    def __init__(self) -> None:
        command, self.url = agent_command()
        super().__init__("agent", command, AGENT_ENVIRONMENT)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """-9."""
        self.signal(signal.SIGKILL)


@dataclass
class Stack:
    """What a test drives."""

    stage: Stage
    agents: list[Agent]
    ears: Ears

    def agent_of(self, started: dict[str, Any]) -> Agent:
        session = self.stage.app.state.context.sessions.registry.get(started["session_id"])
        return next(agent for agent in self.agents if agent.url == session.lease.base_url)

    def other_than(self, agent: Agent) -> Agent:
        return next(one for one in self.agents if one is not agent)

    async def voice_of(self, started: dict[str, Any]) -> dict[str, Any]:
        reported = (await self.stage.http.get("/debug/audio")).json()["sessions"]
        voice: dict[str, Any] = next(s for s in reported if s["session_id"] == started["session_id"])["voice"]
        return voice


@contextmanager
def unhurried() -> Iterator[None]:
    """Agents are killed here and none hangs: one that a busy machine holds up, at its work or at a start, is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        for constant in (
            "orchestrator.session.agent_connection.SILENT_S",
            "orchestrator.session.agent_connection.STILL_S",
            "orchestrator.agents.agent_client._CONNECT_TIMEOUT_S",
            "orchestrator.session.session_failover.MOVE_S",
        ):
            patch.setattr(constant, NEVER_S)
        yield


@asynccontextmanager
async def stack(
    access: LiveKitAccess, agents: int = 2, *, lasting: str | None = None, watches: bool = True, **settings: Any
) -> AsyncIterator[Stack]:
    """Everything started; ended in reverse. The listener takes the video too, if it `watches`.

    `lasting` is the base URL of an agent that runs already and goes on; `agents` are started beside it.
    """
    async with AsyncExitStack() as exits:
        exits.enter_context(unhurried())
        children = [Agent() for _ in range(agents)]
        for child in children:
            await child.start()
            exits.push_async_callback(child.stop)
        for child in children:
            await child.ready(child.url + "/health", NEVER_S)
        if lasting is not None:
            await until(functools.partial(answers, lasting + "/health"))
        ears = Ears(watches=watches)
        await ears.join(access.url, join_token(access, ROOM, "viewer"))
        exits.push_async_callback(ears.leave)
        running = await exits.enter_async_context(
            stage(
                livekit_url=access.url,
                livekit_api_key=access.api_key,
                livekit_api_secret=access.api_secret,
                agent_url=[*([lasting] if lasting else []), *(child.url for child in children)],
                **{"voice_standby": "warm", **settings},
            )
        )
        yield Stack(running, children, ears)


async def answers(url: str) -> bool:
    """Whether something answers 200 there."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=NEVER_S) as http:
            return (await http.get(url)).status_code == 200
    except httpx.TransportError:
        return False


async def speak(line: Line, pcm: bytes, block_s: float = 0.04) -> None:
    """Sends PCM at its own pace, as one segment."""
    begun, step = time.monotonic(), round(block_s * RATE)
    await line.say("audio.start")
    for at in range(0, len(pcm) // 2, step):
        await asyncio.sleep(max(0.0, begun + at / RATE - time.monotonic()))
        await line.socket.send(pcm[2 * at : 2 * (at + step)])
    await line.say("audio.end")
