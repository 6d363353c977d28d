"""A line whose room's server takes the join and then says nothing, or whose SDK breaks: it joins again, and ends when it is to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
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


async def test_a_line_that_goes_on_the_air_begins_anew() -> None:
    line = RoomPublisher(JoinRoom(line="l", url="ws://x", token="t", on_air=False), lambda _: None)
    before = line.score
    line.air(False)
    assert line.score is before, "it was off the air"
    line.air(True)
    begun = line.score
    assert begun is not before and line._wanted.is_set()
    line.air(False)
    assert line.score is not begun, "what was to be said goes with the track"


@pytest.mark.parametrize("listens", [False, True])
async def test_only_a_listener_is_waited_for(listens: bool) -> None:
    kinds = module.rtc.ParticipantKind
    kind = kinds.PARTICIPANT_KIND_STANDARD if listens else kinds.PARTICIPANT_KIND_AGENT
    room, asked = Room(), list[bool]()
    room.remote_participants = {
        "a": SimpleNamespace(kind=kinds.PARTICIPANT_KIND_AGENT),
        "b": SimpleNamespace(kind=kind),
    }

    async def subscribed() -> None:
        asked.append(True)

    line = RoomPublisher(JoinRoom(line="l", url="ws://x", token="t", on_air=True), lambda _: None)
    line._room = room  # type: ignore[assignment]  # it has what is used of the SDK's
    await line._wait_subscribed(SimpleNamespace(wait_for_subscription=subscribed))  # type: ignore[arg-type]  # so has this
    assert asked == [True] * listens
