"""Runs file I/O in threads, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Disk:
    """Calls functions that read and write a folder. `what` says of what, in an error."""

    what: str

    async def __call__(self, work: Callable[..., _Answer], *args: object) -> _Answer:
        """The result of `work`, which runs in a thread. Raises ProblemError `disk_full` in place of OSError."""
        try:
            return await asyncio.to_thread(work, *args)
        except OSError as error:
            text = f"The folder of {self.what} cannot be used: {error.strerror or error}."
            raise ProblemError(ErrorCode.DISK_FULL, text) from error
