"""Background loops of the agent that must not end because a library raised something unexpected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from musetalk_agent.metrics import LOOP_FAILURES
from musetalk_agent.protocol.restarts import run_restarted

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
