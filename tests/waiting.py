"""Waiting for what another task, thread or process does. Every test that cannot await the event itself polls through here."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

NEVER_S = 120.0
"""A deadline that only catches "never": many times what the slowest machine needs, and less than a test's own time limit."""
_POLL_S = 0.01
_ASK_S = 0.05


async def until(holds: Callable[[], T | Awaitable[T]], within_s: float = NEVER_S, *, every_s: float | None = None) -> T:
    """Polls `holds` (a plain or an async function) until what it returns is true, and returns that.

    It looks every 10 ms. An async function asks a server or another process, which costs both some milliseconds: every 50 ms.
    `every_s` is another pause.

    Raises AssertionError with the source of `holds` and what it returned last, after `within_s` seconds.
    """
    end = time.monotonic() + within_s
    while True:
        got = holds()
        pause_s = _POLL_S
        if inspect.isawaitable(got):
            got, pause_s = await got, _ASK_S
        value: T = got
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(_never(holds, value, within_s))
        await asyncio.sleep(every_s or pause_s)


def wait_until(holds: Callable[[], T], within_s: float = NEVER_S) -> T:
    """The same for a test without an event loop: blocks the calling thread."""
    end = time.monotonic() + within_s
    while not (value := holds()):
        if time.monotonic() > end:
            raise AssertionError(_never(holds, value, within_s))
        time.sleep(_POLL_S)
    return value


async def turns(count: int = 50) -> None:
    """Lets the event loop run so many times: what needs no time and no network, and was ready, has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


def _never(holds: Callable[[], object], value: object, within_s: float) -> str:
    try:
        source = inspect.getsource(holds).strip()
    except (OSError, TypeError):
        source = repr(holds)
    return f"not within {within_s} s: {source} was {value!r}"
