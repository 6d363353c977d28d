"""The wire itself: it delays, loses and blocks what it is told to, and nothing of it is left on the machine."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.net.inside import inside, unavailable
from tests.net.world import FAR, World

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
_ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.99.0.2", 9000))
while True:
    s.sendto(*s.recvfrom(2000))
"""


class Probe(asyncio.DatagramProtocol):
    """Counts the echoes and how long each took."""

    def __init__(self) -> None:
        self.took: dict[bytes, float] = {}

    def datagram_received(self, data: bytes, _: object) -> None:
        self.took[data] = 1000 * (time.monotonic() - float(data))


async def _round_trips(count: int) -> list[float]:
    transport, probe = await asyncio.get_running_loop().create_datagram_endpoint(Probe, remote_addr=(FAR, 9000))
    for _ in range(count):
        transport.sendto(repr(time.monotonic()).encode())
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.3)
    transport.close()
    return list(probe.took.values())


async def measure(world: World) -> dict[str, Any]:
    """Runs inside."""
    echo = await asyncio.create_subprocess_exec(*world.there([sys.executable, "-c", _ECHO]))
    try:
        async with asyncio.timeout(10):
            while not await _round_trips(1):
                pass
        told: dict[str, Any] = {}
        await world.delay(40, 20)
        told["delayed"] = await _round_trips(100)
        await world.delay(0)
        await world.lose(20)
        told["lost"] = 300 - len(await _round_trips(300))
        await world.lose(0)
        await world.block()
        told["blocked"] = len(await _round_trips(5))
        await world.drop()
        told["open"] = len(await _round_trips(5))
    finally:
        echo.kill()
        await echo.wait()
    return told


async def test_the_wire_does_what_it_is_told() -> None:
    told = await inside("tests.net.test_wire:measure")
    assert len(told["delayed"]) == 100
    assert 40 < min(told["delayed"]) < 80 < max(told["delayed"]) and 70 < statistics.median(told["delayed"]) < 110
    assert 60 <= told["lost"] <= 160  # of 300, at 20 % each way: 108 are to be expected
    assert (told["blocked"], told["open"]) == (0, 5)
    devices = Path("/proc/net/dev").read_text()
    assert "wire0" not in devices and "wire1" not in devices
