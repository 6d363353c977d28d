"""Starts the engines while the port is open already and `/health` says `warming`."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class WarmUp:
    """Starts the engines once.

    Args:
        start: makes and warms them.
        on_failed: called on the event loop when there is an error.

    Attributes:
        over: whether they are ready.
        error: what `start` raised; the process is to end then.
    """

    def __init__(self, start: Callable[[], Awaitable[None]], on_failed: Callable[[], None]) -> None:
        self._start, self._on_failed = start, on_failed
        self._begun = time.monotonic()
        self.over = False
        self.error: Exception | None = None

    async def run(self) -> None:
        """Never raises. Cancelling leaves the engines to the caller, who closes them."""
        self._begun = time.monotonic()
        try:
            await self._start()
        except Exception as error:  # the task's boundary: drivers raise anything, and the port would stay open
            log.exception("the agent cannot start")
            self.error = error
            self._on_failed()
            return
        gc.collect()
        gc.freeze()  # what is there now stays, and no collection need look at it again
        self.over = True
        log.info("ready", extra={"after_s": round(time.monotonic() - self._begun, 1)})

    def note(self, engine: str) -> str:
        """For people: what is waited for, and how long it has taken so far."""
        return f"The engine {engine!r} is loaded and measured, for {time.monotonic() - self._begun:.0f} s so far."
