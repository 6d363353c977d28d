"""What the core does with a worker process that is over, and with what it writes into the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging

_STDERR_BYTES = 2000
STDERR_MOST = 64 << 10
"""Bytes that one worker may write into our log. The rest is read and dropped, so that the worker never waits for us."""


async def end(process: asyncio.subprocess.Process, within_s: float) -> None:
    """Closes the worker's input and waits for its end; kills it after `within_s` seconds, and at once when cancelled.

    What it still writes is read: asyncio's `wait` returns only when the output was read to its end, so a worker that floods would
    be waited for without end. No other task may read the output meanwhile.
    """
    assert process.stdin is not None
    process.stdin.close()
    emptying = asyncio.create_task(_empty(process), name="worker-rest")
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await process.wait()
    finally:
        kill(process)
        try:
            await process.wait()
        finally:
            emptying.cancel()
            await asyncio.wait([emptying])


def kill(process: asyncio.subprocess.Process) -> None:
    """Kills a process that has not ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def log_errors(process: asyncio.subprocess.Process, logger: logging.Logger, message: str) -> None:
    """Logs what the worker writes to its standard error, up to `STDERR_MOST`, until it ends."""
    assert process.stderr is not None
    written = 0
    while block := await process.stderr.read(_STDERR_BYTES):
        written += len(block)
        if written <= STDERR_MOST:
            text = block.decode(errors="replace").strip()
            logger.warning(message, extra={"worker_pid": process.pid, "text": text})


async def _empty(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        while await process.stdout.read(1 << 16):
            pass
