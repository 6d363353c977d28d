"""The end of a worker process, whatever the worker and the caller do."""

from __future__ import annotations

import asyncio
import sys

import pytest

from musetalk_tools.processes import Child
from orchestrator.worker_process import end
from tests.waiting import NEVER_S, until

pytestmark = pytest.mark.usefixtures("no_process_left")
DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True: time.sleep(60)
"""


async def test_a_worker_that_does_not_end_is_killed_when_its_end_is_cancelled() -> None:
    """A service that is asked to end while a hung worker is being replaced."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DEAF, stdin=pipe, stdout=pipe)
    assert process.stdout is not None and await process.stdout.readline() == b"ready\n"
    ending = asyncio.create_task(end(process, within_s=600))
    assert process.stdin is not None
    while not process.stdin.is_closing():  # noqa: ASYNC110 - the first step of `end`
        await asyncio.sleep(0)
    ending.cancel()
    done, _ = await asyncio.wait({ending}, timeout=NEVER_S)
    assert done and ending.cancelled() and process.returncode == -9


async def test_a_part_of_the_demo_is_killed_when_its_stop_is_cancelled(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child("deaf", [sys.executable, "-c", DEAF], {})
    await child.start()
    await until(lambda: "ready" in capfd.readouterr().err)  # its output goes to ours
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    done, _ = await asyncio.wait({stopping}, timeout=NEVER_S)
    assert done and stopping.cancelled() and await child.ended() == -9
