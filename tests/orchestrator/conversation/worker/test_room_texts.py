"""Texts of a room's chat: who may send them, how long and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from livekit import rtc

from orchestrator.conversation.worker import room_texts as module
from orchestrator.conversation.worker.room_texts import RoomTexts
from tests.waiting import turns, until

AGENT, PERSON = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT, rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD


@dataclass
class Person:
    kind: int


@dataclass
class Reader:
    """A text stream in parts; `broken` ends it as the SDK ends one that its sender leaves."""

    parts: list[str]
    broken: bool = False
    hold: asyncio.Event | None = None
    closed: bool = False

    async def __aiter__(self) -> AsyncIterator[str]:
        if self.hold is not None:
            await self.hold.wait()
        for part in self.parts:
            yield part
        if self.broken:
            raise ConnectionError("the sender left")

    def close(self) -> None:
        self.closed = True


@dataclass
class Room:
    """The part of a room that `RoomTexts` uses."""

    remote_participants: dict[str, Person] = field(default_factory=dict)
    handlers: dict[str, Callable[..., None]] = field(default_factory=dict)
    now: float = 0.0
    taken: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def on(self, event: str, handler: Callable[..., None]) -> None:
        self.handlers[event] = handler

    def off(self, event: str, handler: Callable[..., None]) -> None:
        del self.handlers[event]

    def register_text_stream_handler(self, topic: str, handler: Callable[..., None]) -> None:
        self.handlers[topic] = handler

    def unregister_text_stream_handler(self, topic: str) -> None:
        del self.handlers[topic]

    def send(self, identity: str, *parts: str, **more: Any) -> Reader:
        reader = Reader(list(parts), **more)
        self.handlers["lk.chat"](reader, identity)
        return reader

    def texts(self) -> RoomTexts:
        def take(message_id: str, text: str) -> None:
            assert message_id.startswith("chat_")
            self.taken.append(text)

        made = RoomTexts(cast("rtc.Room", self), take, self.warnings.append, lambda: self.now)
        made.open()
        return made


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    made = Room({"ada": Person(PERSON), "bob": Person(PERSON)})
    texts = made.texts()
    yield made
    texts.close()
    assert not made.handlers


async def test_texts_of_persons_are_taken(room: Room) -> None:
    reader = room.send("ada", "Hello, ", "avatar.")
    await until(lambda: room.taken)
    assert room.taken == ["Hello, avatar."] and reader.closed
    room.send("ada", " ", "\n")
    room.send("ada", "half", broken=True)
    await turns()
    assert room.taken == ["Hello, avatar."] and not room.warnings


@pytest.mark.parametrize("identity", ["avatar-ses_1", "voice-ses_1", "probe-ses_1", "conversation-ses_1"])
async def test_texts_of_our_own_and_of_agents_are_not(room: Room, identity: str) -> None:
    room.remote_participants |= {identity: Person(PERSON), "agent": Person(AGENT)}
    readers = [room.send(identity, "Hello."), room.send("agent", "Hello.")]
    await until(lambda: all(reader.closed for reader in readers))
    assert not room.taken


async def test_a_text_may_come_before_its_sender(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.send("eve", "Hello.")
    await turns()
    assert not room.taken
    room.remote_participants["eve"] = Person(PERSON)
    room.handlers["participant_connected"](room.remote_participants["eve"])
    await until(lambda: room.taken)
    monkeypatch.setattr(module, "_KNOWN_S", 0.01)
    reader = room.send("nobody", "Hello.")
    await until(lambda: reader.closed)
    assert room.taken == ["Hello."]


async def test_a_long_text_is_dropped_and_read_no_further(room: Room) -> None:
    room.send("ada", "x" * 5000)
    long = room.send("ada", "x" * 3000, "x" * 2001, "never read")
    await until(lambda: room.warnings)
    assert room.taken == ["x" * 5000] and long.closed
    assert room.warnings == ["a text of ada has more than 5000 characters: it is dropped"]


async def test_one_who_floods_is_slowed_and_others_are_not(room: Room) -> None:
    for number in range(8):
        room.send("ada", f"text {number}")
    room.send("bob", "Hello.")
    await until(lambda: "Hello." in room.taken)
    assert room.taken == [f"text {number}" for number in range(5)] + ["Hello."]
    assert room.warnings == ["ada sends texts faster than one a second: one is dropped"], "one warning for all of them"
    room.now = 1.0
    room.send("ada", "a second later")
    await until(lambda: "a second later" in room.taken)


async def test_not_more_than_may_are_on_their_way(room: Room) -> None:
    hold = asyncio.Event()
    waiting = [room.send("ada", "Hello.", hold=hold) for _ in range(module.READING_MAX)]
    await turns()
    assert room.send("bob", "Hello.").closed and len(room.warnings) == 1
    hold.set()
    await until(lambda: all(reader.closed for reader in waiting))
