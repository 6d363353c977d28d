"""A room's server that says nothing to the agent's join, trickles, or upgrades and goes silent: the start ends with a code."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from musetalk_agent.publishers.failover import policy
from musetalk_agent.publishers.livekit import detached_connect
from tests.fakes.stuck import stuck
from tests.musetalk_agent.service.served import agent
from tests.waiting import NEVER_S

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455


def upgraded(head: bytes) -> bytes:
    """The WebSocket opens, and no answer to the join comes."""
    keys = [line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: ")]
    accept = base64.b64encode(hashlib.sha1(b"".join(keys) + _MAGIC).digest())
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    return upgrade + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" if keys else b""


ROOMS: dict[str, tuple[bytes | Callable[[bytes], bytes], bytes]] = {
    "silent": (b"", b""),
    "trickling": (b"HTTP/1.1 200 OK\r\n", b"X-Slow: 1\r\n"),
    "upgraded": (upgraded, b""),
}


@pytest.mark.parametrize(("first", "then"), ROOMS.values(), ids=ROOMS)
async def test_a_start_ends_and_leaves_nothing(
    first: bytes | Callable[[bytes], bytes], then: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "ALONE_AT_START_S", 1.0)
    async with asyncio.timeout(NEVER_S):
        async with agent(tmp_path) as here, stuck(first, then) as port:
            url = f"ws://127.0.0.1:{port}"
            reported = await here.start(connect_livekit=True, livekit_url=url)
            assert (reported.status_code, reported.json()["code"]) == (503, "livekit_unavailable")
            assert (await here.http.get("/health")).json()["capacity"]["sessions"] == 0
            assert (await here.start("s2")).status_code == 200
        # a join that is under way cannot be called off; it ends when its server does
        await asyncio.gather(*detached_connect._tasks, return_exceptions=True)
