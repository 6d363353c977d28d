"""Captions are a courtesy: a room that takes none, or refuses them, holds up nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from musetalk_agent.agent_metrics import CAPTIONS
from musetalk_agent.media.segment import Caption
from musetalk_agent.publishers.livekit import transcription
from musetalk_agent.publishers.livekit.transcription import CaptionWriter
from tests.waiting import NEVER_S, until


class Room:
    """A room's local participant, whose streams write down what they get; `broken` ones raise, `stuck` ones never answer."""

    def __init__(self) -> None:
        self.local_participant = SimpleNamespace(identity="avatar-x", stream_text=self.stream_text)
        self.reported: list[Any] = []
        self.broken = self.stuck = self.cancelled = False

    async def stream_text(self, *, topic: str, attributes: dict[str, str]) -> Room:
        await self.write(("open", topic, attributes))
        return self

    async def write(self, text: Any) -> None:
        if self.broken:
            raise RuntimeError("the SDK is not well")
        if self.cancelled:
            raise asyncio.CancelledError  # a future of the SDK's, and not the task
        if self.stuck:
            await asyncio.Event().wait()
        self.reported.append(text)

    async def aclose(self, *, attributes: dict[str, str]) -> None:
        await self.write(("close", attributes))


def counted(outcome: str) -> float:
    return float(CAPTIONS.labels(outcome)._value.get())


def attributes(line: str, final: str, **more: str) -> dict[str, str]:
    return {"lk.segment_id": f"avatar-x.{line}", "lk.transcription_final": final, **more}


async def test_a_line_is_a_stream_and_the_next_one_ends_it() -> None:
    room = Room()
    sid: list[str | None] = ["TR_1"]
    writer = CaptionWriter(room, lambda: sid[0])  # type: ignore[arg-type]
    for piece in (Caption("1", "one "), Caption("1", "two"), Caption("2", "three"), Caption("2", final=True)):
        writer.push(piece)
    await writer.aclose()
    track = {"lk.transcribed_track_id": "TR_1"}
    assert room.reported == [
        ("open", "lk.transcription", attributes("1", "false", **track)),
        "one ",
        "two",
        ("close", attributes("1", "true", **track)),
        ("open", "lk.transcription", attributes("2", "false", **track)),
        "three",
        ("close", attributes("2", "true", **track)),
    ]


async def test_after_a_refusal_the_line_goes_on_in_another_stream() -> None:
    room, before = Room(), counted("dropped")
    writer = CaptionWriter(room, lambda: None)  # type: ignore[arg-type]
    writer.push(Caption("1", "one "))
    await asyncio.sleep(0)
    room.broken = True
    writer.push(Caption("1", "lost "))
    await until(lambda: counted("dropped") == before + 1)
    room.broken = False
    writer.push(Caption("1", "three"))
    await writer.aclose()
    assert [reported for reported in room.reported if isinstance(reported, str)] == ["one ", "three"]
    assert counted("dropped") == before + 1


async def test_captions_go_on_after_a_future_of_the_sdk_was_cancelled() -> None:
    room, before = Room(), counted("dropped")
    writer = CaptionWriter(room, lambda: None)  # type: ignore[arg-type]
    room.cancelled = True
    writer.push(Caption("1", "lost "))
    await asyncio.sleep(0)
    room.cancelled = False
    writer.push(Caption("1", "two"))
    await until(lambda: "two" in room.reported)  # the writer is restarted after a back-off
    await writer.aclose()
    assert counted("dropped") == before + 1


async def test_a_room_that_takes_none_costs_the_oldest_pieces_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcription, "_LAST_S", 0.05)
    room, before = Room(), counted("dropped")
    room.stuck = True
    writer = CaptionWriter(room, lambda: None)  # type: ignore[arg-type]
    for number in range(100):
        writer.push(Caption("1", f"{number} "))
    assert counted("dropped") == before + 100 - 64
    await asyncio.wait_for(writer.aclose(), NEVER_S)
    assert room.reported == []
