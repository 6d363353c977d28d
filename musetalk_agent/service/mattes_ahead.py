"""Makes the mattes of prepared avatars that have a background of their own, while the agent has nothing else to do.

An avatar is ready without one, since a matte takes a tenth of a second of a core for each frame. The first session with another
background would wait for that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from musetalk_agent.agent_metrics import MATTES_WAITING
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.errors import AgentError
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

WAITING_MOST = 32
"""Bundles that wait; the oldest go."""
SHARE = 0.1
"""Of the cache, which a matte may take: others' avatars are not put out for what may never be asked for."""
_AFTER_S = 5.0
"""From the end of a preparation: many an avatar's first session starts at once, and needs the cores."""
_BYTES_A_PIXEL = 2.5
_LOOK_S = 1.0


class MattesAhead:
    """Makes them, one at a time. `run` is its task.

    Args:
        library: what has the bundles.
        cache_bytes: the size of its cache.
        speaking: sessions that speak or start now.
    """

    def __init__(self, library: AvatarLibrary, cache_bytes: int, speaking: Callable[[], int]) -> None:
        self._library, self._most = library, SHARE * cache_bytes
        self._speaking = speaking
        self._waiting: deque[tuple[float, Bundle]] = deque(maxlen=WAITING_MOST)
        self._wake = asyncio.Event()

    def want(self, bundle: Bundle) -> None:
        """A bundle that was prepared without a matte. One whose matte would be too large is passed over."""
        if _BYTES_A_PIXEL * len(bundle) * bundle.width * bundle.height <= self._most:
            self._waiting.append((time.monotonic() + _AFTER_S, bundle))
            MATTES_WAITING.set(len(self._waiting))
            self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        await supervise("mattes", self._work)

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            if not self._waiting:
                await self._wake.wait()
            elif time.monotonic() < self._waiting[0][0] or self._speaking():
                await asyncio.sleep(_LOOK_S)
            else:
                _, bundle = self._waiting.popleft()
                MATTES_WAITING.set(len(self._waiting))
                await self._make(bundle)

    async def _make(self, bundle: Bundle) -> None:
        try:
            await self._library.matte(bundle)
        except AgentError as error:  # the first session that wants it has it made, or gets the error
            log.info("a matte was not made ahead", extra={"bundle": bundle.path.name, "reason": error.detail})
