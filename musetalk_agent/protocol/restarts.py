"""A background loop that is restarted when it fails; each service wraps it with its own metric. Standard library only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


async def run_restarted(
    name: str,
    loop: Callable[[], Awaitable[None]],
    count: Callable[[], object],
    *,
    first_s: float,
    last_s: float,
    settled_s: float,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Runs `loop`. When it raises, that is logged and counted, and it starts again after a back-off that doubles.

    Returns when the loop returns. Cancelling ends the loop. A CancelledError that the loop raises although this task was not
    cancelled (the SDK's futures may be cancelled by themselves) counts as a failure.

    Args:
        name: names the loop in the log.
        loop: called for every run.
        count: called for every failure.
        first_s, last_s: the first back-off and the longest, in seconds.
        settled_s: a loop that ran this long before it failed is restarted after the first back-off again.
        sleep: waits out the back-off, in seconds.
    """
    clock, delay, task = asyncio.get_running_loop().time, first_s, asyncio.current_task()
    while True:
        begun = clock()
        try:
            await loop()
            return
        except asyncio.CancelledError as error:
            if task is None or task.cancelling():
                raise
            failure: BaseException = error
        except Exception as error:  # noqa: BLE001 - task boundary: the loop is restarted whatever broke it
            failure = error
        if clock() - begun > settled_s:
            delay = first_s
        count()
        extra = {"loop": name, "restart_in_s": delay}
        log.error("a background loop failed: it is restarted", exc_info=failure, extra=extra)
        await sleep(delay)
        delay = min(last_s, 2 * delay)
