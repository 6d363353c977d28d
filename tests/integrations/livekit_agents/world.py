"""A room with an avatar, its listener, and a real agent of livekit-agents in an environment of its own."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from livekit import api

from musetalk_tools.livekit_server import LiveKitAccess
from tests.fakes.stage import API_KEY
from tests.integrations.conversation import warm_python
from tests.orchestrator.voice.stack import ROOM, Stack, stack
from tests.orchestrator.voice.tones import LOWEST_HZ, STEP_HZ, SYMBOL_S, Ears, listening
from tests.viewer import RATE
from tests.waiting import NEVER_S, until

ENVIRONMENT = Path.home() / ".cache/musetalk-livekit/envs/livekit-agents"
PYTHON = ENVIRONMENT / "bin/python"
MISSING = None if PYTHON.exists() else f"livekit-agents has no environment at {ENVIRONMENT}: run `tools/setup agents`"
SPEAKER = "agent-of-the-tests"
_REPOSITORY = Path(__file__).resolve().parents[3]
PATHS = f"{_REPOSITORY / 'integrations/livekit_agents'}{os.pathsep}{_REPOSITORY}"
"""The plugin, and the protocol's table of retries."""
_IMPORTED = ("livekit.plugins.musetalk", "livekit.plugins.musetalk.output", "livekit.plugins.musetalk.client")
_WINDOW = RATE // 100
_FULL_LEVEL = 4500.0  # RMS; the tones have 6364


def python() -> str:
    """The interpreter of the environment, which has imported livekit-agents and the plugin."""
    return warm_python.path(str(PYTHON), _IMPORTED)


@dataclass
class Talker:
    """The agent's process, and all it reported."""

    process: asyncio.subprocess.Process
    reported: list[dict[str, Any]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _reading: asyncio.Task[None] | None = None

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.reported.append(json.loads(line))
            self._news.set()

    def of(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.reported if one["event"] == event]

    async def do(self, order: str, **facts: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": order, **facts}).encode() + b"\n")
        await self.process.stdin.drain()

    async def wait(self, event: str, count: int = 1, within_s: float = NEVER_S) -> dict[str, Any]:
        """The `count`-th of this kind."""
        end = time.monotonic() + within_s
        while len(self.of(event)) < count:
            self._news.clear()
            assert time.monotonic() < end, (
                f"no {event} no. {count} within {within_s} s; reported: {self.reported[-12:]}"
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self._news.wait()
        return self.of(event)[count - 1]

    @property
    def complaints(self) -> list[str]:
        """Warnings about acknowledgements that were too many, or did not come."""
        return [one["text"] for one in self.of("log") if "playback" in one["text"]]


@asynccontextmanager
async def talker(
    access: LiveKitAccess, orchestrator_url: str, script: str = "agent.py", *arguments: str
) -> AsyncIterator[Talker]:
    """An agent that is ready. It leaves at the end, and is killed if it does not."""
    grants = api.VideoGrants(room_join=True, room=ROOM, can_update_own_metadata=True)
    token = api.AccessToken(access.api_key, access.api_secret).with_kind("agent").with_identity(SPEAKER)
    environment = {
        **os.environ,
        "LIVEKIT_URL": access.url,
        "LIVEKIT_API_KEY": access.api_key,
        "LIVEKIT_API_SECRET": access.api_secret,
        "LIVEKIT_TOKEN": token.with_grants(grants).to_jwt(),
        "MUSETALK_URL": orchestrator_url,
        "MUSETALK_API_KEY": API_KEY,
        "PYTHONPATH": PATHS,
    }
    pipe = asyncio.subprocess.PIPE
    command = (python(), str(Path(__file__).with_name(script)), *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment)
    found = Talker(process)
    reading = asyncio.create_task(found.read())
    try:
        await found.wait("ready")
        yield found
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                await process.wait()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


@dataclass
class Scene:
    """What a test drives."""

    stack: Stack
    talker: Talker

    @property
    def ears(self) -> Ears:
        return self.stack.ears

    async def session(self) -> dict[str, Any]:
        """The avatar's session, as the orchestrator tells it."""
        (ready,) = self.talker.of("ready")
        answer = await self.stack.stage.http.get(f"/session/{ready['session_id']}")
        return dict(answer.json())


@asynccontextmanager
async def scene(access: LiveKitAccess, agents: int = 1, **settings: Any) -> AsyncIterator[Scene]:
    """Everything started: workers, orchestrator, listener, agent. The avatar is seen and heard by the listener."""
    async with (
        stack(access, agents=agents, voice_standby="off", **settings) as running,
        talker(access, running.stage.url) as agent,
    ):
        await listening(running.ears)
        await until(lambda: running.ears.video)
        yield Scene(running, agent)


def heard_to(ears: Ears) -> float:
    """How far into an utterance of tones was heard, in seconds: the last tone, and how much of it; to 10 ms."""
    symbols = [symbol for blocks in ears.by_track.values() for symbol in _symbols(blocks)]
    last = max(symbols, default=0)
    return last * SYMBOL_S + min(SYMBOL_S, symbols.count(last) * _WINDOW / RATE)


def _symbols(blocks: Sequence[tuple[float, np.ndarray]]) -> Iterable[int]:
    """The tone of each 10 ms at full level: what a listener's jitter buffer makes up when sound stays away is quieter."""
    sound = np.concatenate([np.zeros(0, np.int16), *(block for _, block in blocks)]).astype(float)
    windows = sound[: len(sound) // _WINDOW * _WINDOW].reshape(-1, _WINDOW)
    for window in windows[np.sqrt((windows**2).mean(axis=1)) > _FULL_LEVEL]:
        spectrum = np.abs(np.fft.rfft(window * np.hanning(_WINDOW), 4096))
        yield max(0, round((float(np.argmax(spectrum)) * RATE / 4096 - LOWEST_HZ) / STEP_HZ))
