"""Callers that wait until a clear has taken effect."""

from __future__ import annotations

import asyncio
import logging
import time

from orchestrator.audio.segments import Clearing
from orchestrator.metrics import Metrics

CLEAR_ANSWER_S = 1.0
"""How long `/interrupt` waits for the agent; a link that is down must not hold the caller."""
_log = logging.getLogger(__name__)


class Clears:
    """Those of one session."""

    def __init__(self, session_id: str, metrics: Metrics) -> None:
        self._session_id = session_id
        self._metrics = metrics
        self._waiters: dict[int, list[asyncio.Future[float]]] = {}

    async def wait(self, clearing: Clearing) -> float:
        """Waits for the answer, a second at most. Returns the seconds of speech that were dropped, as far as known by then."""
        begun = time.monotonic()
        dropped_s = clearing.dropped_s
        if not clearing.answered:
            waiter = asyncio.get_running_loop().create_future()
            waiters = self._waiters.setdefault(id(clearing), [])
            waiters.append(waiter)
            try:
                async with asyncio.timeout(CLEAR_ANSWER_S):
                    dropped_s = await waiter
            except TimeoutError:
                _log.warning("the agent did not answer a clear in time", extra={"session_id": self._session_id})
            finally:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiters[id(clearing)]
        self._metrics.interrupt_seconds.observe(time.monotonic() - begun)
        return round(dropped_s, 3)

    def answer(self, clearing: Clearing) -> None:
        """It took effect."""
        for waiter in self._waiters.get(id(clearing), ()):
            if not waiter.done():
                waiter.set_result(clearing.dropped_s)

    def give_up(self) -> None:
        """The session is over: nobody is held any longer."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(0.0)
