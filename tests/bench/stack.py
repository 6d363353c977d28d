"""The demo as processes, and a client of it, for measuring."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import websockets

from tests.viewer import RATE, Viewer
from tests.waiting import NEVER_S


@dataclass
class Demo:
    """A running stack."""

    info: dict[str, str]
    http: httpx.AsyncClient
    process: asyncio.subprocess.Process

    def memory_mb(self) -> dict[str, float]:
        """Resident megabytes of each process, by its last words."""
        return {name: each.memory_info().rss / 2**20 for name, each in self._members().items()}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that each process has used, by its last words."""
        times = {name: each.cpu_times() for name, each in self._members().items()}
        return {name: each.user + each.system for name, each in times.items()}

    def _members(self) -> dict[str, psutil.Process]:
        root = psutil.Process(self.process.pid)
        return {" ".join(p.cmdline()[1:4])[-40:] or p.name(): p for p in [root, *root.children(recursive=True)]}

    def usage(self) -> dict[str, float]:
        """Sums over the stack's processes."""
        root = psutil.Process(self.process.pid)
        members = [root, *root.children(recursive=True)]
        return {
            "threads": sum(m.num_threads() for m in members),
            "files": sum(m.num_fds() for m in members),
            "rss_mb": sum(m.memory_info().rss for m in members) / 2**20,
            "cpu_s": sum(m.cpu_times().user + m.cpu_times().system for m in members),
        }

    async def statistics(self, session_id: str) -> dict[str, Any]:
        """What the agent counts of a session."""
        headers = {"Authorization": f"Bearer {self.info['agent_api_key']}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as agent:
            answer = await agent.get(f"{self.info['agent_url']}/session/{session_id}")
        statistics: dict[str, Any] = answer.json()["statistics"]
        return statistics

    @asynccontextmanager
    async def live(self, viewer: Viewer | None = None, **body: Any) -> AsyncIterator[Live]:
        """A viewer joins (a `viewer` that is none yet, or a plain one), then a session starts in its room."""
        room = f"bench-{uuid.uuid4().hex[:8]}"
        ticket = (await self.http.post("/token", json={"room": room, "identity": "viewer"})).raise_for_status().json()
        viewer = await (viewer or Viewer()).join(self.info["livekit_url"], ticket["token"])
        try:
            asked = asyncio.get_running_loop().time()
            answer = await self.http.post("/session/start", json={"room": room, **body})
            assert answer.is_success, answer.text
            started = answer.json()
            try:
                async with websockets.connect(started["audio_url"], max_queue=None) as socket:
                    live = Live(self, started, viewer, socket, asked)
                    assert await viewer.until(20, lambda: viewer.video), "no picture within 20 s"
                    yield live
            finally:
                await self.http.post(f"/session/{started['session_id']}/stop")
        finally:
            await viewer.leave()


@dataclass
class Live:
    """A session with one viewer and one audio connection; `asked` is when it was asked for, on the monotonic clock."""

    demo: Demo
    started: dict[str, Any]
    viewer: Viewer
    socket: websockets.ClientConnection
    asked: float

    async def send(self, pcm: Any, *, paced: bool = True, block: int = 640) -> list[float]:
        """Sends int16 PCM; returns when each block was sent (at real-time pace: when its last sample was spoken)."""
        loop, times = asyncio.get_running_loop(), []
        begun = loop.time()
        for at in range(0, len(pcm), block):
            if paced:
                await asyncio.sleep(max(0.0, begun + min(at + block, len(pcm)) / RATE - loop.time()))
            times.append(loop.time())
            await self.socket.send(pcm[at : at + block].astype("<i2").tobytes())
        return times

    async def say(self, kind: str) -> None:
        """Sends a control message."""
        await self.socket.send(json.dumps({"type": kind}))

    async def interrupt(self) -> None:
        """Barge-in."""
        answer = await self.demo.http.post(f"/session/{self.started['session_id']}/interrupt")
        answer.raise_for_status()

    async def statistics(self) -> dict[str, Any]:
        """What the agent counts of this session."""
        return await self.demo.statistics(self.started["session_id"])


@asynccontextmanager
async def demo(*options: str) -> AsyncIterator[Demo]:
    """Starts `musetalk-orchestrator demo` on free ports and ends it afterwards."""
    command = [sys.executable, "-m", "orchestrator", "demo", "--json", "--port", "0", *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(120):
            info = json.loads(await process.stdout.readline())
        headers = {"Authorization": f"Bearer {info['api_key']}"}
        async with httpx.AsyncClient(
            base_url=info["orchestrator_url"], headers=headers, timeout=60, trust_env=False
        ) as http:
            yield Demo(info, http, process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(NEVER_S):
            await process.wait()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """These variables are set within, and not after it."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
