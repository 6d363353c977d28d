"""The orchestrator as a real server, with a fake agent and a fake room service behind real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import websockets
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection

from orchestrator.agents.agent_client import public_trust
from orchestrator.app import create_app
from orchestrator.serving import server_config
from orchestrator.settings import Settings
from orchestrator.tts.voices import Voices
from tests.fakes.agent_server import AGENT_KEY, FakeAgent
from tests.fakes.balky import Balky
from tests.fakes.room_service import FakeRoomService
from tests.fakes.serving import BRIEF, plain_config, serving
from tests.waiting import NEVER_S

API_KEY = "api-key-of-the-tests"
OTHER_KEY = "another-key-of-the-tests"
LIVEKIT_SECRET = "secretsecretsecretsecretsecret00"


class Line:
    """One `/audio` connection; messages are kept in order of arrival."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []
        self._arrived = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for text in self.socket:
                self.messages.append(json.loads(text))
                self._arrived.set()
        except websockets.ConnectionClosed:
            pass
        finally:
            self._arrived.set()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    async def wait(self, *kinds: str, count: int = 1, within_s: float = NEVER_S, **fields: Any) -> dict[str, Any]:
        """The `count`-th message of one of these types that has these values in its fields."""

        def fitting() -> list[dict[str, Any]]:
            return [
                message
                for message in self.messages
                if message["type"] in kinds and fields.items() <= {k: message.get(k) for k in fields}.items()
            ]

        end = time.monotonic() + within_s
        while len(fitting()) < count:
            self._arrived.clear()
            left = end - time.monotonic()
            if left <= 0 or self._reader.done():
                raise AssertionError(f"no {kinds} {fields} no. {count}; came: {self.messages}")
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                continue
        return fitting()[count - 1]

    async def say(self, kind: str) -> None:
        await self.socket.send(json.dumps({"type": kind}))

    async def closed(self, within_s: float = NEVER_S) -> int | None:
        """The close code."""
        await asyncio.wait_for(asyncio.shield(self._reader), within_s)
        return self.socket.close_code

    def cut(self) -> None:
        """Ends the connection as a network would."""
        self.socket.transport.abort()

    async def aclose(self) -> None:
        await self.socket.close()
        await self._reader


@dataclass
class Stage:
    """A running orchestrator and what stands behind it."""

    url: str
    app: FastAPI
    http: httpx.AsyncClient
    agent: FakeAgent
    rooms: FakeRoomService
    livekit: Balky
    """In front of `rooms`."""
    settings: Settings

    async def start(self, **body: Any) -> dict[str, Any]:
        """A session; by default with the pattern engine."""
        if not body.keys() & {"frames_zip_url", "idle_video_url", "avatar_id"}:
            body.setdefault("engine", "pattern")
        answer = await self.http.post("/session/start", json={"room": "stage", **body})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    @asynccontextmanager
    async def audio(self, url: str, **headers: str) -> AsyncIterator[Line]:
        socket = await websockets.connect(
            url, additional_headers=headers, proxy=None, compression=None, open_timeout=NEVER_S
        )
        line = Line(socket)
        try:
            yield line
        finally:
            await line.aclose()

    @asynccontextmanager
    async def live(self, query: str = "", **body: Any) -> AsyncIterator[tuple[dict[str, Any], Line]]:
        """A session with one connection that has been greeted."""
        started = await self.start(**body)
        async with self.audio(started["audio_url"] + query) as line:
            await line.wait("hello")
            yield started, line


@asynccontextmanager
async def stage(agents: int = 1, voices: Voices | None = None, **overrides: Any) -> AsyncIterator[Stage]:
    """Starts everything and ends everything. `overrides` are settings; `agents` counts agents, all the same object when 1."""
    async with AsyncExitStack() as stack:
        films = stack.enter_context(TemporaryDirectory())
        agent, rooms = FakeAgent(), FakeRoomService()
        addresses = [await stack.enter_async_context(serving(plain_config(agent.app))) for _ in range(agents)]
        livekit = Balky(rooms.app)
        livekit_url = await stack.enter_async_context(serving(plain_config(livekit)))
        fields: dict[str, Any] = {
            "livekit_url": livekit_url.replace("http", "ws"),
            "livekit_api_key": "devkey",
            "livekit_api_secret": LIVEKIT_SECRET,
            "orchestrator_api_key": f"{API_KEY}, {OTHER_KEY}",
            "agent_url": addresses,
            "agent_api_key": AGENT_KEY,
            "store_path": ":memory:",
            "recording_dir": films,
            "avatars_dir": Path(films) / "avatars",
            "voice_standby": "off",
        }
        settings = Settings(**{**fields, **overrides})
        app = create_app(settings, voices=voices or Voices(synthesizers=[]))
        url = await stack.enter_async_context(serving(server_config(app, settings, host="127.0.0.1", port=0)))
        headers = {"Authorization": f"Bearer {API_KEY}"}
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=url, headers=headers, timeout=NEVER_S, trust_env=False, limits=BRIEF, verify=public_trust()
            )
        )
        yield Stage(url, app, http, agent, rooms, livekit, settings)
