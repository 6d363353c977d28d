"""Worker processes behind a pipe: framed messages, start with a bare environment, logs, and the end in bounded time.

A message is two unsigned 32-bit big-endian lengths (header, payload), the header as UTF-8 JSON object, and the payload. Either side
treats a message past the limits as a broken peer. Standard library only: the workers import this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

LENGTHS = struct.Struct(">II")
HEADER_LIMIT = 256 * 1024
"""Bytes. A part of 120 characters has some hundred phonemes of 40 bytes; the list of voices has 20 KB."""
PAYLOAD_LIMIT = 8 * 1024 * 1024
"""Bytes: 90 s of speech at 48 kHz, several times what the longest part can be."""


class FramingError(Exception):
    """The peer sent what cannot be a message."""


def encode(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """One message.

    Raises:
        FramingError: header or payload pass their limit.
    """
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    _check(len(head), len(payload))
    return LENGTHS.pack(len(head), len(payload)) + head + payload


def lengths(prefix: bytes) -> tuple[int, int]:
    """Lengths of header and payload from the first `LENGTHS.size` bytes.

    Raises:
        FramingError: they pass their limits.
    """
    head, payload = LENGTHS.unpack(prefix)
    _check(head, payload)
    return head, payload


def decode_header(head: bytes) -> dict[str, Any]:
    """The header's object.

    Raises:
        FramingError: not a JSON object.
    """
    try:
        value = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise FramingError("the header is not JSON") from error
    if not isinstance(value, dict):
        raise FramingError("the header is not an object")
    return value


class WorkerLost(Exception):
    """The worker ended, hangs, or sends what is no report; the message says which."""


_Report = TypeVar("_Report")


async def receive(
    process: asyncio.subprocess.Process, within_s: float, validate: Callable[[bytes], _Report]
) -> _Report:
    """Reads the worker's next report; its payload is dropped.

    Args:
        within_s: longest wait, in seconds.
        validate: makes a report of the header; raises ValueError for what is none.

    Raises:
        WorkerLost: no report came, or not one.
    """
    assert process.stdout is not None
    try:
        async with asyncio.timeout(within_s):
            head, payload = lengths(await process.stdout.readexactly(LENGTHS.size))
            report = validate(await process.stdout.readexactly(head))
            await process.stdout.readexactly(payload)
    except TimeoutError as error:
        raise WorkerLost(f"no sign of life for {within_s:g} s") from error
    except asyncio.IncompleteReadError as error:
        raise WorkerLost("the process ended") from error
    except (ConnectionError, FramingError, ValueError) as error:
        raise WorkerLost(f"it sent what is no report: {type(error).__name__}") from error
    return report


def _check(head: int, payload: int) -> None:
    if head > HEADER_LIMIT or payload > PAYLOAD_LIMIT:
        raise FramingError(f"message of {head} + {payload} bytes, limits {HEADER_LIMIT} + {PAYLOAD_LIMIT}")


_STDERR_BYTES = 2000
STDERR_MOST = 64 << 10
"""Bytes that one worker may write into our log. The rest is read and dropped, so that the worker never waits for us."""


async def spawn(command: Sequence[str], threads: int) -> asyncio.subprocess.Process:
    """Starts a worker with pipes and a bare environment: native code that reads text of strangers must not see our keys.

    `threads` limits OpenMP. Raises OSError when the program cannot be started.
    """
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


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
