"""What is read from a room and said back to it, against a room whose every answer the test gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from livekit import rtc
from livekit.rtc.data_stream import StreamError

from musetalk_agent.agent_metrics import AGENT_CALLS
from musetalk_agent.avatar_protocol import core, speech
from musetalk_agent.avatar_protocol.speech import DataStreamAudioInput
from musetalk_agent.protocol.messages import PlaybackFinished, PlaybackStarted
from tests.waiting import NEVER_S, turns, until

SENDER = "agent-1"
NOT_TAKEN = rtc.RpcError.ErrorCode.RECIPIENT_NOT_FOUND
TIMED_OUT = rtc.RpcError.ErrorCode.RESPONSE_TIMEOUT


@dataclass
class Time:
    """A clock that a test sets; each look at it takes `step` seconds. With 0 no stream is silent for too long."""

    at: float = 0.0
    step: float = 0.1

    def now(self) -> float:
        self.at += self.step
        return self.at

    async def sleep_until(self, deadline: float) -> None:
        raise NotImplementedError

    async def wait(self, event: asyncio.Event, deadline: float) -> bool:
        raise NotImplementedError

    def working(self) -> Any:
        raise NotImplementedError


@dataclass
class Reader:
    """A byte stream whose chunks a test puts; None ends it, and an exception breaks it."""

    stream: str
    chunks: asyncio.Queue[bytes | Exception | None] = field(default_factory=asyncio.Queue)
    closed: int = 0
    read: int = 0

    @property
    def info(self) -> SimpleNamespace:
        attributes = {"sample_rate": "16000", "num_channels": "1"}
        return SimpleNamespace(stream_id=self.stream, attributes=attributes)

    def close(self) -> None:
        self.closed += 1

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.chunks.get()
        if chunk is None:
            raise StopAsyncIteration
        if isinstance(chunk, Exception):
            raise chunk
        self.read += 1
        return chunk


class Room:
    """What `DataStreamAudioInput` uses of a room, and what it was asked for."""

    def __init__(self, *, here: bool = True, answers: tuple[int | None, ...] = ()) -> None:
        self.remote_participants = {SENDER: object()} if here else {}
        self.local_participant = self
        self.calls: list[tuple[str, str]] = []
        self._answers = list(answers)
        self._handlers: dict[str, Callable[..., None]] = {}
        self._streams: Callable[[Reader, str], None] | None = None
        self.clear: Callable[[SimpleNamespace], str] | None = None

    def register_byte_stream_handler(self, topic: str, handler: Callable[[Reader, str], None]) -> None:
        assert topic == core.AUDIO_TOPIC
        self._streams = handler

    def register_rpc_method(self, method: str, handler: Callable[[SimpleNamespace], str]) -> None:
        assert method == core.CLEAR_METHOD
        self.clear = handler

    def on(self, event: str, handler: Callable[..., None]) -> None:
        self._handlers[event] = handler

    def emit(self, event: str, *args: object) -> None:
        self._handlers[event](*args)

    def brings(self, *streams: str) -> list[Reader]:
        """Streams of the agent come, in this order."""
        assert self._streams is not None
        readers = [Reader(stream) for stream in streams]
        for reader in readers:
            self._streams(reader, SENDER)
        return readers

    async def perform_rpc(
        self, *, destination_identity: str, method: str, payload: str, response_timeout: float
    ) -> str:
        assert destination_identity == SENDER and 0 < response_timeout < 10
        self.calls.append((method, payload))
        code = self._answers.pop(0) if self._answers else None
        if code is not None:
            raise rtc.RpcError(code, "made")
        return "ok"


@dataclass
class Playback:
    """Speech that is being heard: each look finds more of it."""

    buffered_s: float = 0.0
    looks: int = 0

    @property
    def heard(self) -> tuple[int, float]:
        self.looks += 1
        return 1, self.looks / 10


@dataclass
class Pipeline:
    """What the speech is put into."""

    acts: list[tuple[object, ...]] = field(default_factory=list)
    player: Playback = field(default_factory=Playback)

    def begin(self, number: int, rate: int) -> None:
        self.acts.append(("begin", number, rate))

    def push(self, samples: Any) -> None:
        self.acts.append(("push", len(samples)))

    def end(self) -> None:
        self.acts.append(("end",))

    def clear(self) -> None:
        self.acts.append(("clear",))


@dataclass
class Heard:
    """A `DataStreamAudioInput` at work, and what is around it."""

    speech: DataStreamAudioInput
    room: Room
    pipeline: Pipeline
    time: Time


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls and pauses between tries take no time."""
    for name in ("_TICK_S", "_AGAIN_S"):
        monkeypatch.setattr(speech, name, 0.001)


def made(room: Room) -> Heard:
    time, pipeline = Time(), Pipeline()
    subject = DataStreamAudioInput(pipeline, SENDER, 2, time, 0.0)  # type: ignore[arg-type]  # the part that is used
    subject.on_room_joined(room)  # type: ignore[arg-type]  # the same
    return Heard(subject, room, pipeline, time)


@asynccontextmanager
async def at_work(heard: Heard) -> AsyncIterator[Heard]:
    task = asyncio.create_task(heard.speech.run())
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])


def calls(outcome: str, method: str = core.STARTED_METHOD) -> float:
    return float(AGENT_CALLS.labels(method, outcome)._value.get())


async def test_a_stream_that_was_cleared_before_it_was_read_is_closed_unread() -> None:
    heard = made(Room())
    first, second = heard.room.brings("a", "b")
    assert heard.room.clear is not None
    assert heard.room.clear(SimpleNamespace(caller_identity=SENDER)) == "ok"
    for reader in (first, second):
        reader.chunks.put_nowait(bytes(320))
    async with at_work(heard):
        await until(lambda: first.closed and second.closed)
    assert heard.pipeline.acts == [("begin", 1, 16000), ("begin", 2, 16000), ("clear",)]
    assert first.read == second.read == 0


@pytest.mark.parametrize("broken", [StreamError("its sender is gone"), TimeoutError()])
async def test_of_a_stream_that_breaks_is_said_what_came_and_the_next_is_read(broken: Exception) -> None:
    heard = made(Room())
    heard.time.step = 0
    first, second = heard.room.brings("a", "b")
    for chunk in (bytes(320), broken):
        first.chunks.put_nowait(chunk)
    async with at_work(heard):
        await until(lambda: first.closed)
        second.chunks.put_nowait(bytes(640))
        second.chunks.put_nowait(None)
        await until(lambda: second.closed)
    assert heard.pipeline.acts == [
        ("begin", 1, 16000),
        ("push", 160),
        ("end",),
        ("begin", 2, 16000),
        ("push", 320),
        ("end",),
    ]


async def test_speech_that_is_in_hand_already_is_heard_before_more_is_read() -> None:
    heard = made(Room())
    heard.pipeline.player.buffered_s = 2.5  # and 2 is the most
    (reader,) = heard.room.brings("a")
    for _ in range(3):
        reader.chunks.put_nowait(bytes(320))
    reader.chunks.put_nowait(None)
    async with at_work(heard):
        await until(lambda: reader.read == 1 and heard.time.at > 30)  # three times what a silent stream is waited for
        assert reader.read == 1 and reader.closed == 0
        heard.pipeline.player.buffered_s = 2.0
        await until(lambda: reader.closed)
    assert heard.pipeline.acts == [("begin", 1, 16000), *3 * [("push", 160)], ("end",)]


async def test_the_end_closes_the_stream_that_is_read_and_those_that_wait() -> None:
    heard = made(Room())
    heard.time.step = 0.0
    readers = heard.room.brings("a", "b", "c")
    async with at_work(heard):
        await until(lambda: heard.pipeline.acts)
    assert [reader.closed for reader in readers] == [0, 1, 1], "the first was being read: its iteration was cancelled"
    assert readers[0].read == 0 and heard.speech.segments == 3


async def test_what_another_has_cleared_is_reported_once_and_the_stream_that_is_read_goes_on() -> None:
    """A `clear` from elsewhere drops a segment whose stream waits behind another one."""
    heard = made(Room())
    heard.time.step = 0.0
    first, second = heard.room.brings("a", "b")
    async with at_work(heard):
        await until(lambda: heard.pipeline.acts)
        heard.speech.on_playback_event(PlaybackFinished(segment=2, position_s=0.0, interrupted=True))
        first.chunks.put_nowait(bytes(640))
        first.chunks.put_nowait(None)
        await until(lambda: second.closed)
        await until(lambda: heard.room.calls)
    assert heard.pipeline.acts == [("begin", 1, 16000), ("push", 320), ("end",)]
    assert heard.room.calls == [(core.FINISHED_METHOD, json.dumps({"playback_position": 0.0, "interrupted": True}))]


async def test_a_new_room_learns_that_the_speech_is_still_here_and_the_old_one_s_end_changes_nothing() -> None:
    heard = made(Room())
    old, new = heard.room, Room()
    old.brings("a")
    heard.speech.on_room_joined(new)  # type: ignore[arg-type]  # the part of it that is used
    old.emit("disconnected", 1)
    async with at_work(heard):
        await until(lambda: new.calls)
    assert new.calls == [(core.STARTED_METHOD, "")] and old.calls == []
    new.emit("disconnected", 1)
    assert heard.speech.present, "the last known while it is joined again"


@pytest.mark.parametrize(
    ("answers", "tries", "outcome"),
    [
        ((NOT_TAKEN, None), 2, "ok"),
        ((NOT_TAKEN, NOT_TAKEN, NOT_TAKEN), 3, f"error_{NOT_TAKEN}"),
        ((TIMED_OUT,), 1, f"error_{TIMED_OUT}"),
    ],
    ids=["taken the second time", "never taken", "perhaps heard"],
)
async def test_a_call_is_made_again_only_where_the_agent_has_surely_not_heard_it(
    answers: tuple[int | None, ...], tries: int, outcome: str
) -> None:
    heard = made(Room(answers=answers))
    heard.room.brings("a")
    before = calls(outcome)
    heard.speech.on_playback_event(PlaybackStarted(segment=1))
    async with at_work(heard):
        async with asyncio.timeout(NEVER_S):
            await until(lambda: calls(outcome) == before + 1)
    assert heard.room.calls == tries * [(core.STARTED_METHOD, "")]


async def test_an_agent_that_is_out_of_sight_is_waited_for_and_then_given_up() -> None:
    heard = made(Room())
    heard.room.brings("a", "b")
    heard.room.remote_participants.clear()
    before = calls("agent_absent")
    heard.speech.on_playback_event(PlaybackStarted(segment=1))
    async with at_work(heard):
        await until(lambda: calls("agent_absent") == before + 1)
        assert heard.time.at > core.ABSENT_S and heard.room.calls == []


async def test_without_a_room_a_call_waits_for_one_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "_ROOM_S", 0.01)
    heard = made(Room())
    heard.room.brings("a")
    heard.room.emit("disconnected", 1)
    before = calls("no_room")
    heard.speech.on_playback_event(PlaybackStarted(segment=1))
    async with at_work(heard):
        await until(lambda: calls("no_room") == before + 1)
    assert heard.room.calls == []


async def test_calls_that_are_not_made_in_time_push_out_the_oldest() -> None:
    heard = made(Room())
    heard.room.brings("a")
    before = calls("overrun")
    for _ in range(speech._CALLS_MOST):
        heard.room.emit("reconnected")
    assert calls("overrun") == before
    heard.speech.on_playback_event(PlaybackFinished(segment=1, position_s=1.0, interrupted=False))
    assert calls("overrun") == before + 1
    async with at_work(heard):
        await until(lambda: len(heard.room.calls) == speech._CALLS_MOST)
        await turns()
    assert [method for method, _ in heard.room.calls[-2:]] == [core.STARTED_METHOD, core.FINISHED_METHOD]
