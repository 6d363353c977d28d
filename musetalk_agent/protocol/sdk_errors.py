"""One exception type for all failures of the LiveKit SDK."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

_TOKEN = re.compile(r"eyJ[\w.-]+")


def without_tokens(text: str) -> str:
    """The SDK's errors quote tokens."""
    return _TOKEN.sub("…", text)


class SdkError(Exception):
    """A call into the LiveKit SDK failed. Text and representation are those of `raised`, which is also the cause."""

    def __init__(self, raised: Exception) -> None:
        super().__init__(str(raised))
        self.raised = raised

    def __repr__(self) -> str:
        return repr(self.raised)


@contextmanager
def sdk_errors(*passing: type[Exception]) -> Iterator[None]:
    """Raises `SdkError` for what the SDK raises, but for TimeoutError and the classes of `passing`. Cancelling passes.

    livekit-rtc 1.x has no base class for its errors: beside `ConnectError`, `PublishTrackError`, `RpcError` and `StreamError` it
    raises `RuntimeError` (`Room.get_rtc_stats`, a stream that is closed) and bare `Exception` (`AudioSource.capture_frame`,
    `Room.local_participant`).
    """
    unchanged: tuple[type[Exception], ...] = (TimeoutError, SdkError, *passing)
    try:
        yield
    except unchanged:
        raise
    except Exception as error:  # the SDK raises bare Exceptions; see above
        raise SdkError(error) from error


async def clean_up(step: Coroutine[Any, Any, object], within_s: float, logger: logging.Logger, **extra: object) -> None:
    """Runs a step of leaving a room, `within_s` seconds at most. A failure is logged with `extra`, so that the next step runs."""
    try:
        with sdk_errors():
            async with asyncio.timeout(within_s):
                await step
    except (SdkError, TimeoutError) as error:
        logger.warning("leaving was not clean", extra={"error": repr(error), **extra})
