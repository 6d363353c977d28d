"""Leaves a room, and ends joins that are no longer wanted, so that no task of the SDK keeps running.

`Room.connect` must not be cancelled (a connect that is dropped half-way ends in a panic of the native library, rust-sdks#1340), and
through blocked UDP it takes a minute to fail. So a join that is not wanted is detached, and its room is left if it is reached.
"""

from __future__ import annotations

import asyncio
import logging

from livekit import rtc

from musetalk_agent.protocol.sdk_errors import clean_up


async def leave(room: rtc.Room) -> None:
    """Disconnects, and waits until the task in which the SDK reads the room's events has ended.

    `Room.disconnect` returns at once where the server has ended the connection first, while that task still waits for the room's
    last event, which comes a moment later. The caller sets the deadline: when this is cancelled, that task is cancelled too.
    """
    task: asyncio.Task[None] | None = getattr(
        room, "_task", None
    )  # the SDK has no public name for it, and none before a join
    try:
        await room.disconnect()
        if task is not None:
            await asyncio.wait({task})
    finally:
        if task is not None:
            task.cancel()


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
    await clean_up(leave(room), _LEAVE_S, log)
