"""An executor that runs short work on the calling thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class InlineExecutor(Executor):
    """The detector of speech takes 0.05 ms for its 32 ms of sound (silero in livekit-local-inference 0.2.7, one core). The way to a
    thread and back costs several times that, and thirty of them a second for each conversation.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """The work is done, or has failed, when this returns."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whatever the work raises is its result
            future.set_exception(error)
        return future


class InlineEventLoop(asyncio.SelectorEventLoop):
    """Who awaits work of an `InlineExecutor` goes on at once. In asyncio's own loops the result takes two turns of the loop to come
    back, which is longer than 32 ms on two full cores: the detector then hears later with each second.
    """

    def run_in_executor(  # type: ignore[override]  # typeshed's has TypeVarTuple, which hides that it is the same
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """As asyncio's."""
        if not isinstance(executor, InlineExecutor):
            return super().run_in_executor(executor, func, *args)
        work, done = executor.submit(func, *args), self.create_future()
        error = work.exception()
        if error is None:
            done.set_result(work.result())
        else:
            done.set_exception(error)
        return done
