"""Runs a coroutine function in a process of its own, in a network namespace of its own, and returns what it returned.

`await inside("tests.net.scenarios:loss", seconds=10)` imports that function there and calls it with a `World`.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.net.world import world

_UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]


@functools.cache
def unavailable() -> str:
    """Why no namespace can be made here; empty when one can."""
    missing = [name for name in ("unshare", "nsenter", "ip", "nft", "tc") if shutil.which(name) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}: install iproute2, nftables and util-linux"
    if not Path("/dev/net/tun").exists():
        return "network namespaces are tested through TUN devices, and /dev/net/tun is missing"
    tried = subprocess.run([*_UNSHARE, "nft", "list", "tables"], capture_output=True, text=True, check=False)
    return f"no network namespace may be made here: {tried.stderr.strip()}" if tried.returncode else ""


async def inside(function: str, within_s: float = 100.0, **arguments: Any) -> Any:
    """What the function returned (as JSON has it). Raises AssertionError when it raised; its words are on stderr."""
    process = await asyncio.create_subprocess_exec(
        *_UNSHARE, sys.executable, "-m", "tests.net.inside", function, json.dumps(arguments),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(within_s):
            reported = await process.stdout.read()
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert code == 0, f"{function} failed; see standard error"
    return json.loads(reported)


async def _called(function: str, arguments: dict[str, Any]) -> Any:
    module, _, name = function.partition(":")
    async with world() as made:
        return await getattr(importlib.import_module(module), name)(made, **arguments)


def main() -> int:
    """The process inside."""
    print(json.dumps(asyncio.run(_called(sys.argv[1], json.loads(sys.argv[2])))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
