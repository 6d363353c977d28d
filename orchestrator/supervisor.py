"""Background loops that must not end, and clean-ups of which every step must run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from orchestrator.metrics import Metrics

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
SETTLED_S = 60.0
"""A loop that ran this long before it failed is restarted after the first back-off again."""
_log = logging.getLogger(__name__)


async def supervise(
    name: str, loop: Callable[[], Awaitable[None]], metrics: Metrics | None, *, backoff_s: float = FIRST_BACKOFF_S
) -> None:
    """Runs a background loop. When it raises, that is logged and counted, and the loop starts again after a back-off.

    The back-off doubles up to 30 s. Returns when the loop returns. Cancelling ends the loop; a CancelledError that the loop
    raises although this task was not cancelled counts as a failure.

    Args:
        name: names the loop in the log and in `avatar_loop_failures_total`.
        loop: is called for every run.
        metrics: counts the failures; None where there are no metrics.
        backoff_s: before the first restart.
    """
    clock, delay = asyncio.get_running_loop().time, backoff_s
    task = asyncio.current_task()
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
        if clock() - begun > SETTLED_S:
            delay = backoff_s
        if metrics is not None:
            metrics.loop_failures.labels(loop=name).inc()
        extra = {"loop": name, "restart_in_s": delay}
        _log.error("a background loop failed: it is restarted", exc_info=failure, extra=extra)
        await asyncio.sleep(delay)
        delay = min(LAST_BACKOFF_S, 2 * delay)


async def run_each(*steps: tuple[str, Callable[[], Awaitable[object]]], within_s: float) -> list[str]:
    """Runs every step of a clean-up, one after the other; returns the names of those that failed.

    A step that raises, or takes longer than `within_s`, is logged, and the next one runs. When this is cancelled the step that
    runs is cancelled, the steps after it run all the same, and then CancelledError is raised.
    """
    failed: list[str] = []
    cancelled: asyncio.CancelledError | None = None
    for name, step in steps:
        try:
            async with asyncio.timeout(within_s):
                await step()
        except asyncio.CancelledError as error:
            cancelled = error
            failed.append(name)
        except Exception as error:  # noqa: BLE001 - clean-up boundary: one step that fails must not skip the others
            failed.append(name)
            late = isinstance(error, TimeoutError)
            reason = f"not done within {within_s:g} s" if late else type(error).__name__
            extra = {"step": name, "reason": reason}
            _log.error("a step of a clean-up failed", exc_info=None if late else error, extra=extra)
    if cancelled is not None:
        raise cancelled
    return failed
