"""Rooms get their own events, and only these: the answers to audio and statistics of others pass them by."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from livekit import rtc
from livekit.rtc._ffi_client import FfiClient
from livekit.rtc._proto.ffi_pb2 import FfiEvent

from musetalk_agent.publishers.livekit.event_filter import own_events_only
from tests.waiting import until


def event(kind: str, room: int = 0) -> FfiEvent:
    made = FfiEvent()
    getattr(made, kind).SetInParent()
    if kind == "room_event":
        made.room_event.room_handle = room
    return made


@pytest.fixture
async def room() -> rtc.Room:
    """One that is joined, as far as the queue of events knows."""
    made = rtc.Room()
    made._ffi_queue = FfiClient.instance.queue.subscribe(asyncio.get_running_loop())
    made._ffi_handle = SimpleNamespace(handle=7)  # type: ignore[assignment]  # only its number is read
    return made


async def test_a_room_gets_what_is_its_own_and_nothing_else(room: rtc.Room) -> None:
    assert own_events_only(room)
    kinds = ["capture_audio_frame", "publish_data", "get_session_stats", "get_stats", "audio_stream_event"]
    wanted = ["publish_track", "unpublish_track", "rpc_method_invocation", "text_stream_open"]
    for each in [*(event(kind) for kind in kinds), event("room_event", 8), *map(event, wanted), event("room_event", 7)]:
        FfiClient.instance.queue.put(each)
    got: list[FfiEvent] = []

    def drained() -> bool:
        while not room._ffi_queue.empty():
            got.append(room._ffi_queue.get_nowait())
        return len(got) > len(wanted)

    await until(drained)
    assert [each.WhichOneof("message") for each in got] == [*wanted, "room_event"]
    assert got[-1].room_event.room_handle == 7
    FfiClient.instance.queue.unsubscribe(room._ffi_queue)
    room._ffi_handle = None


async def test_one_that_is_not_joined_or_has_left_is_left_alone(room: rtc.Room) -> None:
    assert not own_events_only(rtc.Room())
    FfiClient.instance.queue.unsubscribe(room._ffi_queue)
    assert not own_events_only(room)
    room._ffi_handle = None
