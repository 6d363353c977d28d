"""A real LiveKit deployment with Ingress: Redis, livekit-server and the ingress service, on one address and free ports."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, find
from musetalk_tools.processes import Child, free_port
from tests.servers.redis import redis_server
from tests.waiting import NEVER_S

BINARY = Path("~/.cache/musetalk-livekit/bin/ingress-1.5.0/ingress").expanduser()
"""Where `tools/build_ingress` puts it."""
_READY_S = NEVER_S
_COSTS = ("rtmp_cpu_cost", "whip_cpu_cost", "whip_bypass_transcoding_cpu_cost", "url_cpu_cost")


@dataclass(frozen=True)
class Deployment:
    """Its parts; `rtmp` is the base of the ingress's addresses."""

    access: LiveKitAccess
    server: LiveKitServer
    ingress: Child
    rtmp: str
    redis_url: str


@asynccontextmanager
async def deployment(host: str = "127.0.0.1") -> AsyncIterator[Deployment]:
    """Starts all three, ends all three."""
    program = find()
    assert program is not None, "livekit-server is missing: run `tools/setup livekit`"
    async with redis_server() as redis:
        rtmp_port = free_port()
        rtmp = f"rtmp://{host}:{rtmp_port}/live"
        address = urlsplit(redis.url).netloc
        server = LiveKitServer(program, "error", host=host, redis=address, rtmp_base_url=rtmp)
        ingress, health = _ingress(server.access, address, rtmp_port)
        try:
            await server.start()
            await ingress.start()
            await ingress.ready(health, _READY_S)
            await _listening(host, rtmp_port)
            yield Deployment(server.access, server, ingress, rtmp, redis.url)
        finally:
            await ingress.stop()
            await server.stop()


def _ingress(access: LiveKitAccess, redis_address: str, rtmp_port: int) -> tuple[Child, str]:
    health = free_port()
    config = {
        "api_key": access.api_key,
        "api_secret": access.api_secret,
        "ws_url": access.url,
        "redis": {"address": redis_address},
        "rtmp_port": rtmp_port,
        "whip_port": -1,
        "http_relay_port": free_port(),
        "health_port": health,
        "cpu_cost": {**dict.fromkeys(_COSTS, -1.0), "min_idle_ratio": 0.001},  # else a busy machine is "exceeded"
        "logging": {"level": "error"},
    }
    environment = {
        "INGRESS_CONFIG_BODY": json.dumps(config),
        "PATH": f"{BINARY.parent}{os.pathsep}{os.environ.get('PATH', '')}",  # it starts itself again by this name
    }
    return Child("ingress", [str(BINARY)], environment), f"http://127.0.0.1:{health}"


async def _listening(host: str, port: int) -> None:
    async with asyncio.timeout(_READY_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return
