"""The end of something that has several parts: every step runs, whatever the steps before it did."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

_CANCEL_S = 1.0
"""A step that is out of time gets so long to end after it was cancelled; then it is left behind."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Args:
        name: for the log.
        run: called on the event loop; what it returns is awaited. Work that blocks belongs in a thread (`blocking`).
        within_s: seconds it may take.
    """

    name: str
    run: Callable[[], Awaitable[object]]
    within_s: float


async def tear_down(subject: str, steps: Sequence[Step]) -> list[str]:
    """Runs the steps in order; returns the names of those that failed or took too long, which are logged. Raises nothing of theirs.

    Cancelling waits for the steps all the same, which takes at most the sum of their times, and raises `CancelledError` then.
    """
    work = asyncio.create_task(_run(subject, steps), name=f"tear-down-{subject}")
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return work.result()


async def _run(subject: str, steps: Sequence[Step]) -> list[str]:
    failed: list[str] = []
    for step in steps:
        try:
            problem = await _perform(step)
        except asyncio.CancelledError:  # the event loop is closing; the steps that are left still get their turn
            problem = "it was cancelled"
        if problem is not None:
            failed.append(step.name)
            log.error("a step of an end failed", extra={"subject": subject, "step": step.name, "reason": problem})
    return failed


async def _perform(step: Step) -> str | None:
    """What went wrong, or None."""
    task = asyncio.create_task(_call(step), name=f"tear-down-{step.name}")
    try:
        _, late = await asyncio.wait({task}, timeout=step.within_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if late:
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_S)
        return f"it did not end within {step.within_s:g} s"
    return task.result()


async def _call(step: Step) -> str | None:
    try:
        await step.run()
    except asyncio.CancelledError:
        return "it was cancelled"
    except Exception as error:  # the step's boundary: the next ones run whatever it raised
        log.exception("a step of an end raised", extra={"step": step.name})
        return f"{type(error).__name__}: {error}"
    return None
