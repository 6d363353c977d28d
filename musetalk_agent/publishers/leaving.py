"""Leaving a room so that nothing of the SDK's is left running."""

from __future__ import annotations

import asyncio

from livekit import rtc


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
