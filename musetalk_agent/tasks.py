"""Tasks and threads that always end: blocking calls in daemon threads, teardown step by step, loops that are restarted.

`asyncio.to_thread` is not for calls that may never return (drivers, devices): such a call takes a thread of the shared pool for
good, and both the event loop's end and the interpreter's wait for that thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from musetalk_agent.agent_metrics import LOOP_FAILURES
from musetalk_agent.protocol.old_python import mend_timeouts
from musetalk_agent.protocol.retries import run_restarted

mend_timeouts()  # each step of a clean-up has its time
log = logging.getLogger(__name__)
T = TypeVar("T")


async def in_thread(work: Callable[[], T], name: str, give_back: Callable[[T], object] | None = None) -> T:
    """The result of `work`, which runs in a daemon thread. Raises what it raises.

    Cancelling returns at once and leaves the thread behind. A result whose caller has left is handed to `give_back`, in a
    thread, so that what `work` acquired is released however late it comes.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            made = context.run(work)
        except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
            _hand_over(loop, functools.partial(fail, error))
            return
        if not _hand_over(loop, lambda: settle(made)):
            _give_back(give_back, made, name)

    def fail(error: BaseException) -> None:
        if not result.done():
            result.set_exception(error)

    def settle(made: T) -> None:
        if result.done():  # the caller has left
            _spawn(lambda: _give_back(give_back, made, name), name)
        else:
            result.set_result(made)

    _spawn(run, name)
    try:
        return await result
    except asyncio.CancelledError:
        if (
            result.done() and not result.cancelled() and result.exception() is None
        ):  # it came as the caller was cancelled
            settle(result.result())
        raise


def _spawn(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def _hand_over(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> bool:
    """Whether the loop is there to make the call."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # closed
        return False
    return True


def _give_back(give_back: Callable[[T], object] | None, made: T, name: str) -> None:
    if give_back is None:
        return
    try:
        give_back(made)
    except Exception:  # the boundary of a thread without a caller
        log.exception("what came too late was not released", extra={"call": name})


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


FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 10.0
_SETTLED_S = 30.0


async def supervise(
    name: str, loop: Callable[[], Awaitable[None]], sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> None:
    """Runs `loop` and restarts it when it raises; see `run_restarted`. `avatar_loop_failures_total` counts it."""
    await run_restarted(
        name,
        loop,
        LOOP_FAILURES.labels(name).inc,
        first_s=FIRST_BACKOFF_S,
        last_s=LAST_BACKOFF_S,
        settled_s=_SETTLED_S,
        sleep=sleep,
    )
