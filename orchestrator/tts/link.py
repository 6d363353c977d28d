"""The pipe to one worker process: start, hello, request and answer, end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

from orchestrator.tts import framing
from orchestrator.tts.child import end, log_errors

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 60.0
"""Loading and warming up takes 2 s; a machine busy with everything else that starts may take many times that."""
EXIT_TIMEOUT_S = 1.0
"""The worker leaves as soon as its input closes; after this it is killed."""


class WorkerLostError(Exception):
    """The worker ended, hangs or talks nonsense; the message says which."""


class WorkerLink:
    """One running worker process; `start` makes it, `aclose` ends it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asked = 0
        self._log = asyncio.create_task(
            log_errors(process, logger, "speech worker stderr"), name="speech-worker-stderr"
        )

    @classmethod
    async def start(cls, command: tuple[str, ...]) -> WorkerLink:
        """Starts `command`.

        Raises:
            WorkerLostError: it cannot be started.
        """
        # A bare environment: native code that reads strangers' text has no use for our keys.
        environment = {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "2",
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise WorkerLostError(f"it cannot be started: {error.strerror}") from error
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def hello(self) -> dict[str, Any]:
        """The worker's first message: `voices` and `missing`.

        Raises:
            WorkerLostError: it does not come, or is not one.
        """
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                header, _ = await self._receive()
        except TimeoutError as error:
            raise WorkerLostError("it did not become ready in time") from error
        if not isinstance(header.get("voices"), list):
            raise WorkerLostError("its first message was not a hello")
        return header

    async def exchange(self, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Sends a request, numbered by its `id`, and waits for its answer. Cancelled in between, the link is of no more use.

        Raises:
            WorkerLostError: the process ended or answered nonsense, such as an answer to something else.
        """
        assert self._process.stdin is not None
        self._asked += 1
        try:
            self._process.stdin.write(framing.encode({**header, "id": self._asked}))
            await self._process.stdin.drain()
        except (ConnectionError, framing.FramingError) as error:
            raise WorkerLostError("the request could not be sent") from error
        answer, payload = await self._receive()
        if answer.get("id") != self._asked:  # one message too many, and every text would get the sound of another
            raise WorkerLostError("it answered something that was not asked")
        return answer, payload

    async def wait(self) -> None:
        """Waits for the end of the process."""
        await self._process.wait()

    async def aclose(self) -> None:
        """Closes the worker's input, waits for its end, kills it if need be."""
        try:
            await end(self._process, EXIT_TIMEOUT_S)
        finally:
            self._log.cancel()
            await asyncio.wait([self._log])

    async def _receive(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        try:
            head, payload = framing.lengths(await self._process.stdout.readexactly(framing.LENGTHS.size))
            header = framing.decode_header(await self._process.stdout.readexactly(head))
            return header, await self._process.stdout.readexactly(payload)
        except asyncio.IncompleteReadError as error:
            raise WorkerLostError("the process ended") from error
        except (ConnectionError, framing.FramingError) as error:
            raise WorkerLostError(f"it sent nonsense: {error}") from error
