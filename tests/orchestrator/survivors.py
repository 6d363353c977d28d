"""Orchestrators as processes that can be killed, with a real agent and a real LiveKit; and a sender that does not give up."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import websockets

from musetalk_tools.livekit_server import LiveKitAccess
from musetalk_tools.processes import Child, free_port
from orchestrator.livekit_rooms import LiveKitKeys, Rooms
from tests.fakes.agent_server import AGENT_KEY
from tests.fakes.stage import API_KEY
from tests.integrations.conversation import lasting_agent
from tests.orchestrator.voice.stack import answers
from tests.waiting import NEVER_S, until

RATE = 16_000
BLOCK = 640


MUTE = """
import sys
from orchestrator import worker_pipe
sys.stdout.buffer.write(worker_pipe.encode({"voices": [], "missing": [], "providers": []}))
sys.stdout.buffer.flush()
sys.stdin.buffer.read()
"""
PROGRAM = f"""
import sys
from orchestrator.__main__ import main
from orchestrator.tts.local import LocalSynthesizer
LocalSynthesizer.__init__.__defaults__ = ((sys.executable, "-c", {MUTE!r}),)
"""
"""An orchestrator without voices: loading them takes longer than all else of its start, and nothing is spoken here."""
HASTY = """
from orchestrator import recovery
from orchestrator.session import journal
recovery.LEASE_S = journal.LEASE_S = 5.0
journal.RENEW_S = recovery.LEASE_GRACE_S = 0.5
"""
RUN = "sys.exit(main())"


class Server(Child):
    """An orchestrator on a port of its own."""

    def __init__(self, program: str, environment: dict[str, str], port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-c", program, "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        super().__init__("orchestrator", command, {"LOG_LEVEL": "ERROR", **environment})

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def kill(self) -> None:
        """-9; returns when it is gone."""
        self.signal(signal.SIGKILL)
        await self.ended()


@dataclass
class World:
    """A LiveKit, an agent, and the orchestrators that a test starts."""

    livekit: LiveKitAccess
    agent_url: str
    rooms: Rooms
    stack: AsyncExitStack

    async def orchestrator(self, port: int | None = None, *, hasty: bool = False, **environment: str) -> Server:
        """Starts one; on the same port to follow another. `hasty` ones have leases of five seconds."""
        known = {
            "LIVEKIT_URL": self.livekit.url,
            "LIVEKIT_API_KEY": self.livekit.api_key,
            "LIVEKIT_API_SECRET": self.livekit.api_secret,
            "ORCHESTRATOR_API_KEY": API_KEY,
            "AGENT_URL": self.agent_url,
            "AGENT_API_KEY": AGENT_KEY,
            "VOICE_STANDBY": "off",
        }
        server = Server(PROGRAM + (HASTY if hasty else "") + RUN, known | environment, port)
        await server.start()
        self.stack.push_async_callback(server.stop)
        await server.ready(f"{server.url}/health", NEVER_S)
        return server

    async def call(self, server: Server, method: str, path: str, **body: Any) -> httpx.Response:
        """One request."""
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(trust_env=False, timeout=NEVER_S, headers=headers) as http:
            return await http.request(method, server.url + path, json=body or None)

    async def begin(self, server: Server) -> dict[str, Any]:
        """A session in the room `survivors`."""
        answer = await self.call(server, "POST", "/session/start", room="survivors", engine="pattern")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def avatars(self) -> list[str]:
        """Who of ours is in the room, of whatever deployment."""
        from livekit import api

        request = api.ListParticipantsRequest(room="survivors")
        answer = await self.rooms._livekit.call(lambda livekit: livekit.room.list_participants(request), NEVER_S)
        return [one.identity for one in answer.participants]

    async def taken(self, session_id: str) -> int:
        """Samples that the agent has taken of the session."""
        headers = {"Authorization": f"Bearer {AGENT_KEY}"}
        async with httpx.AsyncClient(trust_env=False, timeout=NEVER_S, headers=headers) as http:
            answer = (await http.get(f"{self.agent_url}/session/{session_id}")).json()
        return next((stage["count"] for stage in answer["funnel"] if stage["stage"] == "samples"), 0)


@asynccontextmanager
async def world(livekit: LiveKitAccess) -> AsyncIterator[World]:
    """Everything but an orchestrator. The agent lasts: what a test begins there, it ends."""
    async with AsyncExitStack() as stack:
        agent_url = lasting_agent.address()
        rooms = Rooms(LiveKitKeys(livekit.url, livekit.url, livekit.api_key, livekit.api_secret))
        await rooms.open()
        stack.push_async_callback(rooms.aclose)
        await until(functools.partial(answers, agent_url + "/health"))
        yield World(livekit, agent_url, rooms, stack)


def speech(seconds: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A tone that is no silence anywhere."""
    return (np.sin(np.arange(round(seconds * RATE)) * 0.3) * 8000).astype("<i2")


@dataclass
class Sender:
    """Sends PCM in real time, and goes on where `hello` says whenever its connection is lost.

    `address` is asked before every connection. `messages` are all that came, `hellos` the counts,
    `sent` the samples that were handed to the connections. While `may_end` is clear the last half second is not sent.
    """

    address: Callable[[], str]
    pcm: np.ndarray[Any, np.dtype[np.int16]]
    messages: list[dict[str, Any]] = field(default_factory=list)
    hellos: list[int] = field(default_factory=list)
    closes: list[int | None] = field(default_factory=list)
    sent: int = 0
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_end.set()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    async def run(self) -> None:
        """Returns when everything was sent and every segment that was reported has finished."""
        while True:
            try:
                async with websockets.connect(self.address(), proxy=None, compression=None) as socket:
                    reading = asyncio.create_task(self._read(socket))
                    try:
                        await self._send(socket)
                        await self._finished()
                        return
                    finally:
                        reading.cancel()
                        await asyncio.gather(reading, return_exceptions=True)
            except (OSError, websockets.ConnectionClosed, websockets.InvalidHandshake) as error:
                if isinstance(error, websockets.ConnectionClosed):
                    self.closes.append(error.rcvd.code if error.rcvd else None)
                await asyncio.sleep(0.1)  # between its attempts

    async def until(self, kind: str) -> None:
        await until(lambda: self.of(kind))

    async def _read(self, socket: websockets.ClientConnection) -> None:
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "hello":
                self.hellos.append(message["received_samples"])
            self.messages.append(message)

    async def _send(self, socket: websockets.ClientConnection) -> None:
        known = len(self.hellos)
        while len(self.hellos) == known:
            if socket.close_code is not None:
                await socket.send("")  # raises why it is closed
            await asyncio.sleep(0.005)  # until it is greeted
        at, begun = self.hellos[-1], time.monotonic()
        first = at
        await socket.send('{"type":"audio.start"}')
        while at < len(self.pcm):
            if at >= len(self.pcm) - RATE // 2 and not self.may_end.is_set():
                await self._held(socket)
            await socket.send(self.pcm[at : at + BLOCK].tobytes())
            at += BLOCK
            self.sent = at
            await asyncio.sleep(max(0.0, begun + (at - first) / RATE - time.monotonic()))  # its pace
        await socket.send('{"type":"audio.end"}')

    async def _held(self, socket: websockets.ClientConnection) -> None:
        """Returns when the end may be sent, or the connection is closed."""
        waiting = {asyncio.create_task(self.may_end.wait()), asyncio.create_task(socket.wait_closed())}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _finished(self) -> None:
        def all_are() -> bool:
            started = {message["segment"] for message in self.of("playback.started")}
            return bool(started) and started <= {message["segment"] for message in self.of("playback.finished")}

        await until(all_are)
