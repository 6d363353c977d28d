"""The whole product across the wire: livekit-server, orchestrator and viewers near, agents far (or near, for a bad way down)."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from livekit import api
from livekit.protocol import models

from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, find
from musetalk_tools.processes import Child, free_port
from tests.bench.stack import Demo
from tests.net.world import FAR, NEAR, World
from tests.servers.ingress import deployment

_AGENT_READY_S = 90.0
_ORCHESTRATOR_READY_S = 60.0


@dataclass
class Stack(Demo):
    """What runs. `live()` starts a session with a viewer, as the benches' demo does."""

    world: World
    access: LiveKitAccess
    agents: list[Child]
    agent_urls: list[str]
    server: LiveKitServer
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def sfu_port(self) -> int:
        """Of signalling and WHIP; media go by UDP."""
        port = urlsplit(self.access.url).port
        assert port is not None
        return port

    async def make_webrtc_impossible(self) -> None:
        """No UDP, and nothing to the SFU's port."""
        await self.world.block(self.sfu_port)

    async def participant(self, room: str, identity: str) -> dict[str, Any]:
        """Who that is in the room now: kind, attributes, tracks; empty when nobody is."""
        async with self._api() as livekit:
            try:
                who = await livekit.room.get_participant(api.RoomParticipantIdentity(room=room, identity=identity))
            except api.TwirpError:
                return {}
        kind = models.ParticipantInfo.Kind.Name(who.kind)
        return {"kind": kind, "tracks": len(who.tracks), "attributes": dict(who.attributes)}

    async def avatars(self) -> list[str]:
        """Avatars and voices in all rooms."""
        async with self._api() as livekit:
            rooms = (await livekit.room.list_rooms(api.ListRoomsRequest())).rooms
            found = [
                (await livekit.room.list_participants(api.ListParticipantsRequest(room=room.name))).participants
                for room in rooms
            ]
        return [who.identity for present in found for who in present if who.identity.startswith(("avatar-", "voice-"))]

    async def ingresses(self) -> int:
        """How many there are."""
        async with self._api() as livekit:
            return len((await livekit.ingress.list_ingress(api.ListIngressRequest())).items)

    @asynccontextmanager
    async def _api(self) -> AsyncIterator[api.LiveKitAPI]:
        livekit = api.LiveKitAPI(self.access.url, self.access.api_key, self.access.api_secret)
        try:
            yield livekit
        finally:
            await livekit.aclose()

    def memory_mb(self) -> dict[str, float]:
        """Resident megabytes of our own processes and, by their modules, of those they started."""
        return {
            name if member.pid == child.pid else f"{name}: {_module(member)}": member.memory_info().rss / 2**20
            for name, child in self.children.items()
            for member in _family(child.pid)
        }

    def usage(self) -> dict[str, float]:
        """Sums over our own processes."""
        members = [member for child in self.children.values() for member in _family(child.pid)]
        return {
            "threads": sum(m.num_threads() for m in members),
            "files": sum(m.num_fds() for m in members),
            "rss_mb": sum(m.memory_info().rss for m in members) / 2**20,
        }


def _family(pid: int | None) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _module(process: psutil.Process) -> str:
    words = process.cmdline()
    return words[words.index("-m") + 1] if "-m" in words[:-1] else process.name()


@asynccontextmanager
async def stack(
    world: World,
    *,
    agents: int = 1,
    ingress: bool = False,
    sfu_far: bool = False,
    engine: str = "pattern",
    **settings: str,
) -> AsyncIterator[Stack]:
    """Starts everything and ends everything.

    Args:
        world: where.
        agents: how many; they are far.
        ingress: with Redis and LiveKit Ingress beside the SFU.
        sfu_far: the SFU is far and the agents near: what a viewer gets has crossed the wire twice, once from the agent.
        engine: of the agents.
        settings: environment of the orchestrator.
    """
    async with AsyncExitStack() as opened:
        folder = opened.enter_context(TemporaryDirectory())
        server = await opened.enter_async_context(_sfu(world, ingress=ingress, far=sfu_far))
        agent_key, key = "agent_" + secrets.token_urlsafe(8), "key_" + secrets.token_urlsafe(8)
        common = {"ALLOW_PRIVATE_URLS": "true", "LOG_LEVEL": _level()}  # the RTMP server is on a private address
        children: dict[str, Child] = {}
        urls = []
        for number in range(agents):
            host, port = (NEAR if sfu_far else FAR), free_port()
            command = [sys.executable, "-m", "musetalk_agent", "serve", "--host", host, "--port", str(port)]
            environment = {"AGENT_API_KEY": agent_key, "AGENT_ENGINE": engine, **common}
            child = Child(f"agent {number}", command if sfu_far else world.there(command), environment)
            children[f"agent {number}"] = child
            urls.append(f"http://{host}:{port}")
            opened.push_async_callback(child.stop)
            await child.start()
        port = free_port()
        environment = {
            "LIVEKIT_URL": server.access.url,
            "LIVEKIT_API_KEY": server.access.api_key,
            "LIVEKIT_API_SECRET": server.access.api_secret,
            "ORCHESTRATOR_API_KEY": key,
            "AGENT_URL": ",".join(urls),
            "AGENT_API_KEY": agent_key,
            "STORE_PATH": str(Path(folder) / "sessions.sqlite"),
            **common,
            **settings,
        }
        command = [sys.executable, "-m", "orchestrator", "serve", "--host", "127.0.0.1", "--port", str(port)]
        children["orchestrator"] = Child("orchestrator", command, environment)
        opened.push_async_callback(children["orchestrator"].stop)
        await children["orchestrator"].start()
        for number, url in enumerate(urls):
            await children[f"agent {number}"].ready(f"{url}/health", _AGENT_READY_S)
        await children["orchestrator"].ready(f"http://127.0.0.1:{port}/health", _ORCHESTRATOR_READY_S)
        info = {
            "orchestrator_url": f"http://127.0.0.1:{port}",
            "livekit_url": server.access.url,
            "agent_url": urls[0],
            "agent_api_key": agent_key,
        }
        http = await opened.enter_async_context(
            httpx.AsyncClient(
                base_url=info["orchestrator_url"],
                headers={"Authorization": f"Bearer {key}"},
                timeout=60,
                trust_env=False,
            )
        )
        fleet = [children[f"agent {number}"] for number in range(agents)]
        yield Stack(info, http, None, world, server.access, fleet, urls, server, children)  # type: ignore[arg-type]


@asynccontextmanager
async def _sfu(world: World, *, ingress: bool, far: bool) -> AsyncIterator[LiveKitServer]:
    if ingress:
        async with deployment(NEAR) as deployed:
            yield deployed.server
        return
    program = find()
    assert program is not None, "livekit-server is missing: run `tools/setup livekit`"
    through = world.there([]) if far else []
    server = LiveKitServer(program, "error", host=FAR if far else NEAR, through=through)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def _level() -> str:
    return os.environ.get("STACK_LOG_LEVEL", "ERROR")
