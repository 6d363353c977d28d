"""Joins that nobody waits for any more.

`Room.connect` must not be cancelled (a connect that is dropped half-way ends in a panic of the native library, rust-sdks#1340), and
through blocked UDP it takes a minute to fail. So a join that is not wanted is let go, and its room left if it is reached.
"""

from __future__ import annotations

import asyncio
import logging

from livekit import rtc

from musetalk_agent.publishers.leaving import leave

log = logging.getLogger(__name__)

_LEAVE_S = 5.0
_tasks: set[asyncio.Task[None]] = set()


def abandon(room: rtc.Room, connecting: asyncio.Task[None]) -> asyncio.Task[None]:
    """Leaves `room` as soon as `connecting` has ended, in the background; the task may be waited for, under a shield."""
    task = asyncio.create_task(_leave(room, connecting), name="livekit-abandoned")
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


async def _leave(room: rtc.Room, connecting: asyncio.Task[None]) -> None:
    await asyncio.wait([connecting])
    if connecting.cancelled() or connecting.exception() is not None:
        return
    try:
        async with asyncio.timeout(_LEAVE_S):
            await leave(room)
    except Exception as error:  # noqa: BLE001 - nobody waits: what the SDK raises is only worth a line
        log.warning("an abandoned room was not left cleanly", extra={"error": repr(error)})
