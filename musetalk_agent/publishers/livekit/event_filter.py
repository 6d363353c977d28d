"""Filters events of other rooms out of a room's event queue.

The SDK (1.2) hands every event of the process to every room: the answer to each block of audio, look at the statistics and packet
of data. With n rooms that is n² events, each with three callbacks of the event loop: docs/reference/performance.md has the cost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from livekit import rtc
from livekit.rtc._ffi_client import FfiClient

log = logging.getLogger(__name__)

_ELSEWHERE = frozenset(
    {
        "audio_stream_event",
        "video_stream_event",
        "capture_audio_frame",
        "get_session_stats",
        "get_stats",
        "publish_data",
    }
)
"""Those that wait for them have subscriptions of their own."""


def own_events_only(room: rtc.Room) -> bool:
    """From now on `room`, which is joined, gets no answers to audio, statistics and data, and no events of other rooms.

    Returns whether that was done: the SDK has no public name for it, and with one that is built otherwise nothing is changed.
    """
    try:
        queue, events = FfiClient.instance.queue, room._ffi_queue
        handle = room._ffi_handle.handle  # type: ignore[union-attr]  # None before a join, which raises the same error
        with queue._lock:
            for index, (subscriber, loop, _) in enumerate(queue._subscribers):
                if subscriber is events:
                    queue._subscribers[index] = (subscriber, loop, _is_own(handle))
                    return True
    except (AttributeError, TypeError, ValueError) as error:
        log.warning("the SDK's events are not filtered", extra={"error": repr(error)})
    return False


def _is_own(handle: int) -> Callable[[Any], bool]:
    def own(event: Any) -> bool:
        kind = event.WhichOneof("message")
        if kind == "room_event":
            return bool(event.room_event.room_handle == handle)
        return kind not in _ELSEWHERE

    return own
