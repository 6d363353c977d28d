"""Background loops that must not end, and clean-ups of which every step must run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from musetalk_agent.protocol.old_python import mend_timeouts
from musetalk_agent.protocol.retries import run_restarted
from orchestrator.metrics import Metrics

mend_timeouts()  # each step of a clean-up has its time
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
SETTLED_S = 60.0
"""A loop that ran this long before it failed is restarted after the first back-off again."""
_log = logging.getLogger(__name__)


async def supervise(
    name: str, loop: Callable[[], Awaitable[None]], metrics: Metrics | None, *, backoff_s: float = FIRST_BACKOFF_S
) -> None:
    """Runs a background loop and restarts it when it raises; see `run_restarted`.

    Args:
        name: names the loop in the log and in `avatar_loop_failures_total`.
        loop: is called for every run.
        metrics: counts the failures; None where there are no metrics.
        backoff_s: before the first restart.
    """

    def count() -> None:
        if metrics is not None:
            metrics.loop_failures.labels(loop=name).inc()

    times = {"first_s": backoff_s, "last_s": LAST_BACKOFF_S, "settled_s": SETTLED_S}
    await run_restarted(name, loop, count, **times, sleep=asyncio.sleep)


async def run_each(*steps: tuple[str, Callable[[], Awaitable[object]]], within_s: float) -> list[str]:
    """Runs every step of a clean-up, one after the other; returns the names of those that failed.

    A step that raises, or takes longer than `within_s`, is logged, and the next one runs. When this is cancelled the step that
    runs is cancelled, the steps after it run all the same, and then CancelledError is raised. A CancelledError that a step raises
    although this task was not cancelled (it waited for another task that was) is a failure of that step.
    """
    failed: list[str] = []
    cancelled: asyncio.CancelledError | None = None
    task = asyncio.current_task()
    requests = task.cancelling() if task is not None else 0
    for name, step in steps:
        try:
            async with asyncio.timeout(within_s):
                await step()
        except asyncio.CancelledError as error:
            failed.append(name)
            if task is None or task.cancelling() > requests:
                cancelled, requests = error, task.cancelling() if task is not None else 0
            else:
                _log.error(
                    "a step of a clean-up failed", exc_info=error, extra={"step": name, "reason": "CancelledError"}
                )
        except Exception as error:  # noqa: BLE001 - clean-up boundary: one step that fails must not skip the others
            failed.append(name)
            late = isinstance(error, TimeoutError)
            reason = f"not done within {within_s:g} s" if late else type(error).__name__
            extra = {"step": name, "reason": reason}
            _log.error("a step of a clean-up failed", exc_info=None if late else error, extra=extra)
    if cancelled is not None:
        raise cancelled
    return failed
