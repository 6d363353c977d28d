"""A line whose room's server takes the join and then says nothing, or whose SDK breaks: it joins again, and ends when it is to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.voice.worker import room_publisher as module
from orchestrator.voice.worker.room_publisher import RoomPublisher
from orchestrator.voice.worker_messages import JoinRoom, LineReport

NEVER_S = 20.0


class Room:
    """The SDK's room, as far as a line uses it, with a server behind it that never acknowledges a track."""

    made: list[Room] = []  # noqa: RUF012 - emptied by each test
    refuses: Exception | None = None

    def __init__(self) -> None:
        self.remote_participants: dict[str, Any] = {}
        self.local_participant = self
        self.left = False
        self.name = "r"
        Room.made.append(self)

    def on(self, event: str, listener: Any) -> None:
        pass

    def isconnected(self) -> bool:
        return not self.left

    async def connect(self, url: str, token: str, options: Any) -> None:
        if Room.refuses is not None:
            raise Room.refuses

    async def publish_track(self, track: Any, options: Any) -> None:
        await asyncio.Event().wait()

    async def disconnect(self) -> None:
        self.left = True


@pytest.mark.parametrize(
    ("refuses", "reported"),
    [
        (None, "could not publish: the server does not answer in time"),
        (Exception("lost eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"), "could not join: lost "),
    ],
)
async def test_a_line_joins_again(monkeypatch: pytest.MonkeyPatch, refuses: Exception | None, reported: str) -> None:
    monkeypatch.setattr(module.rtc, "Room", Room)
    monkeypatch.setattr(module, "PUBLISH_TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "_BACKOFF_S", (0.01, 0.02))
    monkeypatch.setattr(Room, "made", [])
    monkeypatch.setattr(Room, "refuses", refuses)
    reports: list[LineReport] = []
    again = asyncio.Event()

    def on_report(report: LineReport) -> None:
        reports.append(report)
        if report.state == "reconnecting" and len(Room.made) > 1:
            again.set()

    line = RoomPublisher(JoinRoom(line="l", url="ws://x", token="t", on_air=True), on_report)
    async with asyncio.timeout(NEVER_S):
        running = asyncio.create_task(line.run())
        await again.wait()
        line.leave()
        await running
    assert len(Room.made) >= 2 and all(room.left for room in Room.made)
    assert reports[-1].state == "left"
    errors = {report.error for report in reports if report.error}
    assert errors and all(error.startswith(reported) and "eyJ" not in error for error in errors)
