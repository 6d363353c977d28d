"""The wire between two network namespaces: two TUN devices, and every packet from one to the other takes its own time.

A program: `python -m tests.net.router NEAR FAR` makes the devices, prints `ready`, and reads the delay from stdin, one JSON object
a line: `{"delay_ms": 40, "jitter_ms": 20}`. As `tc netem` does, a packet takes delay ± jitter, evenly spread, and may overtake.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import sys
import time

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_MTU = 2048
_QUEUE = 20_000  # packets on their way; more are dropped, as any router would


def tun(name: str) -> int:
    """A TUN device of this namespace; it lives as long as the descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN_NO_PI))
    return descriptor


class Router:
    """Moves packets until stdin ends."""

    def __init__(self, near: int, far: int) -> None:
        self._other = {near: far, far: near}
        self._delay_s = self._jitter_s = 0.0
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def run(self) -> None:
        """Returns when stdin ends."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (*self._other, 0):
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                wait = max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None
                for key, _ in selector.select(wait):
                    if key.fd != 0:
                        self._take(key.fd)
                    elif not self._reported():
                        return
                self._pass_on()

    def _reported(self) -> bool:
        line = sys.stdin.readline()
        if line:
            order = json.loads(line)
            self._delay_s, self._jitter_s = order["delay_ms"] / 1000, order["jitter_ms"] / 1000
        return bool(line)

    def _take(self, source: int) -> None:
        for _ in range(64):
            try:
                packet = os.read(source, _MTU)
            except BlockingIOError:
                return
            self._count += 1
            if len(self._under_way) < _QUEUE:
                due = time.monotonic() + self._delay_s + random.uniform(-self._jitter_s, self._jitter_s)
                heapq.heappush(self._under_way, (due, self._count, self._other[source], packet))

    def _pass_on(self) -> None:
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            _, _, sink, packet = heapq.heappop(self._under_way)
            try:
                os.write(sink, packet)
            except OSError:  # the other side is not up, or its queue is full: a packet lost
                continue


def main() -> int:
    """Makes both devices and runs."""
    router = Router(tun(sys.argv[1]), tun(sys.argv[2]))
    print("ready", flush=True)
    router.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
