"""Blocking calls that may never return (drivers, devices), each in a daemon thread of its own.

`asyncio.to_thread` is not for them: a call that hangs takes a thread of the shared pool for good, and both the event loop's end
and the interpreter's wait for that thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

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
