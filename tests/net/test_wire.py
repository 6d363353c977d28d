"""The wire itself: it delays, loses and blocks what it is asked to, and nothing of it is left on the machine."""

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
from tests.waiting import until

pytestmark = [pytest.mark.network, pytest.mark.skipif(bool(unavailable()), reason=unavailable())]
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


class Line:
    """A socket to the echo on the far side."""

    async def open(self) -> Line:
        made = await asyncio.get_running_loop().create_datagram_endpoint(Probe, remote_addr=(FAR, 9000))
        self._transport, self._probe = made
        return self

    def close(self) -> None:
        self._transport.close()

    def _send(self) -> bytes:
        self._transport.sendto(packet := repr(time.monotonic()).encode())
        return packet

    async def send(self, count: int) -> list[bytes]:
        packets = []
        for _ in range(count):
            packets.append(self._send())
            await asyncio.sleep(0.002)  # the pace of a stream: no buffer on the way overflows
        return packets

    def took(self, packets: list[bytes]) -> list[float]:
        """Milliseconds of those that have come back."""
        return [self._probe.took[packet] for packet in packets if packet in self._probe.took]

    async def trip(self) -> float:
        """Milliseconds that a packet takes now; none may be lost."""
        packet = self._send()
        await until(lambda: self.took([packet]))
        return self._probe.took[packet]

    async def slow(self) -> bool:
        """The router delays what comes: it has taken the order."""
        return await self.trip() > 40

    async def passed(self) -> None:
        """Returns when a packet sent from now on has come back: what was sent before it has too, or never will."""
        later: list[bytes] = []

        def followed() -> list[float]:
            later.append(self._send())
            return self.took(later)

        await until(followed)


async def _behind() -> None:
    """Returns when a packet of TCP, which passes where UDP is blocked, has gone the way and back."""
    try:
        _, writer = await asyncio.open_connection(FAR, 9)
        writer.close()
    except ConnectionRefusedError:
        pass


async def measure(world: World) -> dict[str, Any]:
    """Runs inside."""
    line = await Line().open()
    echo = await asyncio.create_subprocess_exec(*world.there([sys.executable, "-c", _ECHO]))
    try:
        await line.passed()  # the echo runs
        reported: dict[str, Any] = {}
        await world.delay(40, 20)
        await until(line.slow)
        sent = await line.send(100)
        await until(lambda: len(line.took(sent)) == 100)
        reported["delayed"] = line.took(sent)
        await world.delay(0)

        async def quick() -> bool:
            return not await line.slow()

        await until(quick)
        await world.lose(20)
        sent = await line.send(300)
        await line.passed()
        reported["lost"] = 300 - len(line.took(sent))
        await world.lose(0)
        await world.block()
        sent = await line.send(5)
        await _behind()
        await world.drop()
        await line.passed()
        reported["blocked"] = len(line.took(sent))
    finally:
        line.close()
        echo.kill()
        await echo.wait()
    return reported


async def test_the_wire_does_what_it_is_asked() -> None:
    reported = await inside("tests.net.test_wire:measure")
    assert len(reported["delayed"]) == 100
    assert (
        min(reported["delayed"]) > 40 and max(reported["delayed"]) > 80 and statistics.median(reported["delayed"]) > 70
    )
    assert 60 <= reported["lost"] <= 160  # of 300, at 20 % each way: 108 are to be expected
    assert reported["blocked"] == 0  # and what was sent when all passed again came back
    devices = Path("/proc/net/dev").read_text()
    assert "wire0" not in devices and "wire1" not in devices
