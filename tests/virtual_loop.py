"""An event loop whose time jumps: a sleep of an hour takes no time. For code without a socket, a process or a thread under it."""

from __future__ import annotations

import asyncio
import functools
import math
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
T = TypeVar("T")
START_S = 1000.0
"""Monotonic time at which every such loop begins."""
NEVER_S = 2000.0
"""Virtual seconds after which a test has failed: something it waits for does not come, while clocks tick."""
EPOCH_S = 1_800_000_000.0
"""Unix time at which it begins."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs what is ready, then jumps to the next timer. When nothing is ready and no timer is set, it raises: all wait for ever."""

    def __init__(self) -> None:
        self._now = START_S
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds, which `time.monotonic` tells too while `virtual_time` is entered."""
        return self._now

    def jump(self) -> None:
        """It is the moment of the next timer, to the last bit: sums of quarters stay sums of quarters."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]  # a heap that asyncio keeps private
        self._now = max(self._now, timers[0].when())
        self._clock_resolution = math.ulp(self._now)  # asyncio runs timers that are so much early


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("every task waits for something that never comes")
        if not ready and timeout:
            self._loop.jump()
        return ready


@contextmanager
def virtual_time() -> Iterator[VirtualLoop]:
    """A loop of its own; `time.monotonic` and `time.time` are the loop's. At the end no task may be left."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        patch.setattr(time, "monotonic", loop.time)
        patch.setattr(time, "time", lambda: EPOCH_S + loop.time() - START_S)
        yield loop
        left = [task.get_name() for task in asyncio.all_tasks(loop)]
        assert not left, f"tasks left running: {left}"


def virtually(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Makes an async test one that runs on virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with virtual_time() as loop:
            return loop.run_until_complete(asyncio.wait_for(test(*args, **kwargs), NEVER_S))

    return run


async def passes(seconds: float) -> None:
    """Lets so much virtual time pass, which takes none: all that is due until then has happened. Only on a virtual loop."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
    await asyncio.sleep(seconds)
