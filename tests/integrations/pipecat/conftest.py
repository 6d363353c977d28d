"""Pipecat's own environment, and programs in it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import NEVER_S

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path.home() / ".cache" / "musetalk-livekit" / "envs" / "pipecat" / "bin" / "python"
PACKAGE = ROOT / "integrations" / "pipecat"
START_S = NEVER_S
"""Importing Pipecat takes seconds, on a busy machine many."""


class Bot:
    """A program that speaks JSON lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.reported: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())
        self._more = asyncio.Event()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.reported.append(json.loads(line))
            self._more.set()
        self._more.set()

    async def order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.process.stdin.drain()

    def of(self, key: str, value: Any = None) -> list[dict[str, Any]]:
        """What it reported with this key (and value)."""
        return [reported for reported in self.reported if key in reported and (value is None or reported[key] == value)]

    async def wait(self, key: str, value: Any = None, count: int = 1, within_s: float = NEVER_S) -> dict[str, Any]:
        """The `count`-th line of this kind; fails with all that was reported."""
        end = time.monotonic() + within_s
        while len(self.of(key, value)) < count:
            self._more.clear()
            left = end - time.monotonic()
            if left <= 0 or self._reader.done():
                raise AssertionError(f"no {key}={value} no. {count}; reported: {self.reported[-40:]}")
            try:
                await asyncio.wait_for(self._more.wait(), left)
            except TimeoutError:
                continue
        return self.of(key, value)[count - 1]

    async def over(self) -> None:
        """Waits for its end, which must be a good one."""
        async with asyncio.timeout(NEVER_S):
            assert await self.process.wait() == 0
        await self._reader

    async def aclose(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await self._reader


@asynccontextmanager
async def program(*command: str | Path) -> AsyncIterator[Bot]:
    """Runs a Python program in Pipecat's environment, which knows our package and the protocol's table of retries."""
    if not PYTHON.is_file():
        pytest.skip("no environment with pipecat-ai: `tools/setup pipecat` makes it where PyPI can be had")
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONPATH": f"{PACKAGE}{os.pathsep}{ROOT}"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        PYTHON, *command, stdin=pipe, stdout=pipe, env=environment, limit=1 << 20
    )
    bot = Bot(process)
    try:
        yield bot
    finally:
        await bot.aclose()
