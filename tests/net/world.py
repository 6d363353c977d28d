"""Two network namespaces and a bad wire between them: delay, jitter, loss, and whatever may not pass.

The process that makes a `World` is in a namespace of its own already (`tests.net.inside`); that one is *near*, the other is *far*.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from musetalk_tools.processes import Child
from tests.waiting import until

NEAR, FAR = "10.99.0.1", "10.99.0.2"
_TABLE = """
table inet bad
delete table inet bad
table inet bad {{
  chain wire {{
    type filter hook input priority 0; policy accept;
    {rules}
  }}
}}
"""


class World:
    """The wire and what is wrong with it. Rules drop packets where they arrive, so that no sender notices."""

    def __init__(self, far_pid: int, router: asyncio.subprocess.Process) -> None:
        self._enter = ["nsenter", f"--net=/proc/{far_pid}/ns/net", "--"]
        self._router = router
        self._loss = ""

    def there(self, command: Sequence[str]) -> list[str]:
        """`command` on the far side."""
        return [*self._enter, *command]

    async def delay(self, delay_ms: float, jitter_ms: float = 0.0) -> None:
        """One way, both ways: a packet takes `delay_ms` ± `jitter_ms`, evenly spread."""
        assert self._router.stdin is not None
        self._router.stdin.write(json.dumps({"delay_ms": delay_ms, "jitter_ms": jitter_ms}).encode() + b"\n")
        await self._router.stdin.drain()

    async def lose(self, percent: int) -> None:
        """Of all packets, each way, at random. Lasts beside whatever `drop` says."""
        self._loss = f"numgen random mod 100 < {percent}" if percent else ""
        await self.drop()

    async def drop(self, *matches: str) -> None:
        """What passes no longer, in nftables' words (`meta l4proto udp`, `th dport 7880`); nothing: all passes again."""
        rules = " ".join(f'iifname "wire*" {match} drop;' for match in (*matches, self._loss) if match)
        script = _TABLE.format(rules=rules).encode()
        await asyncio.gather(_run(["nft", "-f", "-"], script), _run(self.there(["nft", "-f", "-"]), script))

    async def block(self, *ports: int) -> None:
        """Nothing to or from these ports passes, by UDP or TCP, and no UDP at all."""
        numbers = ", ".join(str(port) for port in ports)
        await self.drop(
            "meta l4proto udp", *([f"tcp dport {{ {numbers} }}", f"tcp sport {{ {numbers} }}"] if ports else [])
        )

    async def cut(self) -> None:
        """Nothing passes."""
        await self.drop("meta l4proto { tcp, udp, icmp, ipv6-icmp }")

    async def limit(self, kbit: int | None) -> None:
        """From far to near at most this much (`tc tbf`)."""
        if kbit is None:
            await _run(self.there(["tc", "qdisc", "del", "dev", "wire1", "root"]))
        else:
            shape = ["tbf", "rate", f"{kbit}kbit", "burst", "16kb", "latency", "200ms"]
            await _run(self.there(["tc", "qdisc", "replace", "dev", "wire1", "root", *shape]))


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Makes the far namespace and the wire. Both end with this process, however it ends."""
    await _run(["ip", "link", "set", "lo", "up"])
    holder = Child("far namespace", ["unshare", "--net", "sleep", "infinity"], {})
    await holder.start()
    router = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.net.router", "wire0", "wire1",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.pid is not None and router.stdin is not None and router.stdout is not None
        await _elsewhere(holder.pid)
        assert (await router.stdout.readline()).strip() == b"ready"
        made = World(holder.pid, router)
        await _run(["ip", "link", "set", "wire1", "netns", str(holder.pid)])
        await _run(["ip", "address", "add", f"{NEAR}/24", "dev", "wire0"])
        await _run(["ip", "link", "set", "wire0", "up"])
        await _run(made.there(["ip", "link", "set", "lo", "up"]))
        await _run(made.there(["ip", "address", "add", f"{FAR}/24", "dev", "wire1"]))
        await _run(made.there(["ip", "link", "set", "wire1", "up"]))
        yield made
    finally:
        if router.stdin is not None:
            router.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            router.terminate()
        await router.wait()
        await holder.stop()


async def _elsewhere(pid: int) -> None:
    """Returns when that process has left our namespace."""
    own = Path("/proc/self/ns/net").readlink()
    await until(lambda: Path(f"/proc/{pid}/ns/net").readlink() != own)


async def _run(command: Sequence[str], stdin: bytes = b"") -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    reported, _ = await process.communicate(stdin)
    assert process.returncode == 0, f"{' '.join(command)}: {reported.decode()}"
