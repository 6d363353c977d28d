"""Background loops of a session that must not end because a library raised something that nobody expected."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from musetalk_agent.metrics import LOOP_FAILURES

FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 10.0
_SETTLED_S = 30.0
"""A loop that ran this long before it failed is restarted after the first back-off again."""
log = logging.getLogger(__name__)


async def supervise(
    name: str, loop: Callable[[], Awaitable[None]], sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> None:
    """Runs `loop`. When it raises, that is logged and counted, and it starts again after a back-off that doubles up to 10 s.

    Returns when the loop returns. Cancelling ends the loop. A CancelledError that the loop raises although this task was not
    cancelled (the SDK's futures may be cancelled by themselves) counts as a failure.

    Args:
        name: names the loop in the log and in `avatar_loop_failures_total`.
        loop: called for every run.
        sleep: waits out the back-off, in seconds.
    """
    clock, delay, task = asyncio.get_running_loop().time, FIRST_BACKOFF_S, asyncio.current_task()
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
        if clock() - begun > _SETTLED_S:
            delay = FIRST_BACKOFF_S
        LOOP_FAILURES.labels(name).inc()
        log.error(
            "a background loop failed: it is restarted", exc_info=failure, extra={"loop": name, "restart_in_s": delay}
        )
        await sleep(delay)
        delay = min(LAST_BACKOFF_S, 2 * delay)
