"""When the voice speaks and what is reported of it, with the worker's part of the conversation written by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from pydantic import BaseModel

from musetalk_agent.protocol.messages import CaptionWord, Cleared, Event, LinkVoice, PlaybackFinished, PlaybackStarted
from orchestrator.audio.outgoing_segment import LinkMessage
from orchestrator.audio.segments import SegmentTracker
from orchestrator.session import standby_voice as tested
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.session.standby_voice import StandbyVoice
from orchestrator.voice.voice_worker import VoiceLine
from orchestrator.voice.worker_messages import (
    ClearAudio,
    EndSegment,
    Handoff,
    HandoffDone,
    JoinRoom,
    LeaveRoom,
    LineReport,
    Publish,
    SegmentPcm,
    SyncTo,
)
from tests.waiting import until

RATE = 16_000


class Clock:
    """`time` for the module that is tested: it stands until a test moves it."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tested, "time", made)
    return made


class Talk:
    """A session's audio path: a real tracker, and whoever it was handed to."""

    session_id = "ses_1"

    def __init__(self) -> None:
        self.tracker = SegmentTracker()
        self.speaker: StandbyVoice | None = None
        self.events: list[Event] = []
        self.due_at: float | None = None

    def attach_renderer(self, speaker: StandbyVoice) -> None:
        self.speaker = speaker
        self.tracker.attach()

    def next_item(self, now: float = 0.0, outstanding_s: float = 0.0, control_only: bool = False) -> LinkMessage | None:
        return self.tracker.next_item(now, outstanding_s, control_only)

    def rewind(self, segment: int, heard_s: float, due_at: float | None = None) -> None:
        self.speaker, self.due_at = None, due_at
        self.tracker.rewind(segment, heard_s, time.monotonic())

    def on_heard(self, segment: int, heard_s: float) -> None:
        self.tracker.on_heard(segment, heard_s, time.monotonic())

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, PlaybackStarted):
            self.tracker.on_started(event, time.monotonic())
        elif isinstance(event, PlaybackFinished):
            self.tracker.on_finished(event)
        elif isinstance(event, Cleared):
            self.tracker.on_cleared(event)

    def link_delay_s(self) -> float:
        return 0.02

    def say(self, seconds: float, *, end: bool = False) -> None:
        self.tracker.push(b"\1\0" * round(seconds * RATE), RATE, time.monotonic())
        if end:
            self.tracker.audio_end()
        if self.speaker is not None:
            self.speaker.wake()


class Worker:
    """Takes a line's orders down, and reports what a test says."""

    def __init__(self) -> None:
        self.sent: list[BaseModel] = []
        self.line: VoiceLine | None = None

    def make(self, on_report: Callable[[LineReport], None]) -> VoiceLine:
        self.line = VoiceLine("line-1", "ws://sfu", lambda: "token", self._send, on_report, lambda _: None)
        return self.line

    def _send(self, message: BaseModel, payload: bytes = b"") -> bool:
        self.sent.append(message)
        return True

    def of(self, kind: type[BaseModel]) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    def report(self, **fields: Any) -> None:
        assert self.line is not None
        self.line.take(LineReport(line="line-1", state="live", at=time.monotonic(), **fields))

    async def answer(self, **fields: Any) -> None:
        await until(lambda: self.of(Handoff))
        assert self.line is not None
        self.line.take(HandoffDone(line="line-1", call=1, **fields))


def voice_of(talk: Talk, worker: Worker, **role: bool) -> StandbyVoice:
    """`Talk` has what a voice uses of a `SpeechPipeline`."""
    return StandbyVoice(cast(SpeechPipeline, talk), worker.make, **role)


def lost(talk: Talk, heard_s: float) -> None:
    """An agent had everything, and was lost when it had said so much of segment 1."""
    while talk.next_item() is not None:
        pass
    talk.on_heard(1, heard_s)
    talk.rewind(1, heard_s)


async def test_it_says_what_was_not_heard_and_tells_of_it() -> None:
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker)
    voice.open()
    talk.say(1.5)
    lost(talk, 0.5)
    assert voice.view() is None and voice.follower is None
    voice.stand_in()
    assert [type(m) for m in worker.sent] == [JoinRoom, SyncTo, Publish, SegmentPcm]
    assert worker.of(JoinRoom)[0].on_air is False
    assert (worker.of(SegmentPcm)[0].segment, worker.of(SegmentPcm)[0].start) == (1, 8000)
    talk.say(0.5, end=True)
    assert worker.of(SegmentPcm)[1].start == 24_000 and worker.of(EndSegment)[0].segment == 1
    assert voice.outstanding_s(0.0) == pytest.approx(1.5)
    worker.report(segment=1, heard_s=0.7, handed_s=0.8, next_segment=1, next_s=0.8)
    assert talk.events == [PlaybackStarted(segment=1)]
    assert voice.view() is not None and voice.view()["role"] == "stands_in"  # type: ignore[index]
    worker.report(segment=1, heard_s=2.0, handed_s=2.0, next_segment=1, next_s=2.0, finished=[1])
    assert talk.events[-1] == PlaybackFinished(segment=1, position_s=2.0, interrupted=False)
    assert talk.tracker.idle


async def test_the_next_agent_gets_the_rest_when_the_voice_has_come_to_the_cut(clock: Clock) -> None:
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker)
    talk.say(4.0)
    lost(talk, 0.5)
    voice.stand_in()
    worker.report(segment=1, heard_s=0.7, handed_s=0.8, next_segment=1, next_s=0.8)
    at = clock.now + 0.05
    await asyncio.gather(voice.hand_over(), worker.answer(segment=1, heard_s=1.25, at=at, whole=False))
    assert talk.due_at == at and talk.speaker is None and not voice.standing_in
    talk.tracker.attach()
    start, rest = talk.next_item(), talk.next_item()
    assert start is not None and '"heard_s":1.25' in str(start.payload)
    assert rest is not None and rest.start == 20_000
    worker.report(segment=1, heard_s=1.2, handed_s=1.25, next_segment=1, next_s=1.25, stopped=True)
    assert worker.of(LeaveRoom) == []  # what was handed over is still on its way
    clock.now += 0.06
    worker.report(segment=1, heard_s=1.25, handed_s=1.25, next_segment=1, next_s=1.25, stopped=True)
    assert len(worker.of(LeaveRoom)) == 1 and voice.view() is None


async def test_an_agent_that_is_lost_before_its_turn_leaves_the_voice_where_it_is() -> None:
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker)
    voice.open()
    talk.say(4.0)
    lost(talk, 0.5)
    voice.stand_in()
    worker.report(segment=1, heard_s=0.7, handed_s=0.8, next_segment=1, next_s=0.8)
    at = time.monotonic() + 5
    await asyncio.gather(voice.hand_over(), worker.answer(segment=1, heard_s=1.25, at=at, whole=False))
    position = voice.position()
    assert position is not None and position[0] == 1 and 0.7 <= position[1] <= 0.8
    talk.rewind(*position)
    voice.stand_in()
    assert worker.of(SyncTo)[-1].free and len(worker.of(JoinRoom)) == 1
    assert sum(m.start == 12_800 for m in worker.of(SegmentPcm)) <= 1  # nothing is sent twice


async def test_a_voice_that_has_said_everything_leaves_once_it_is_heard(clock: Clock) -> None:
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker)
    talk.say(1.0, end=True)
    lost(talk, 0.5)
    voice.stand_in()
    worker.report(segment=1, heard_s=1.0, handed_s=1.0, next_segment=1, next_s=1.0, finished=[1])
    await asyncio.gather(voice.hand_over(), worker.answer(segment=0, heard_s=0.0, at=clock.now, whole=False))
    assert voice.position() == (1, 1.0)
    clock.now += 0.11
    worker.report(segment=1, heard_s=1.0, handed_s=1.0, next_segment=1, next_s=1.0, stopped=True)
    assert len(worker.of(LeaveRoom)) == 1 and voice.view() is None and voice.position() is None


async def test_a_worker_that_never_reports_its_stop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "STOP_S", 0.0)
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker)
    talk.say(4.0)
    lost(talk, 0.5)
    voice.stand_in()
    worker.report(segment=1, heard_s=0.7, handed_s=0.8, next_segment=1, next_s=0.8)
    at = time.monotonic() - 1.0
    await asyncio.gather(voice.hand_over(), worker.answer(segment=1, heard_s=1.25, at=at, whole=False))
    await until(lambda: worker.of(LeaveRoom))
    assert voice.view() is None and voice.position() is None


async def test_where_nobody_speaks_no_track_is_published() -> None:
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker)
    talk.rewind(0, 0.0)
    voice.stand_in()
    worker.report(next_segment=1)
    assert talk.events == [], "nothing was heard"
    await asyncio.gather(voice.hand_over(), worker.answer(segment=0, heard_s=0.0, at=0.0, whole=False))
    assert [type(m) for m in worker.sent] == [JoinRoom, SyncTo, Handoff, LeaveRoom]


async def test_a_line_that_stays_goes_off_the_air() -> None:
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker, joined=True)
    voice.open()
    assert [type(m) for m in worker.sent] == [JoinRoom]
    talk.say(1.0)
    lost(talk, 0.0)
    voice.stand_in()
    worker.report(segment=1, heard_s=0.2, handed_s=0.3, next_segment=1, next_s=0.3)
    at = time.monotonic() - 0.01
    await asyncio.gather(voice.hand_over(), worker.answer(segment=1, heard_s=1.0, at=at, whole=False))
    worker.report(segment=1, heard_s=1.0, handed_s=1.0, next_segment=1, next_s=1.0, stopped=True)
    assert [m.on for m in worker.of(Publish)] == [True, False] and worker.of(LeaveRoom) == []
    voice.close()
    assert len(worker.of(LeaveRoom)) == 1


async def test_a_clear_is_answered_by_the_voice() -> None:
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker)
    talk.say(3.0)
    lost(talk, 1.0)
    voice.stand_in()
    worker.report(segment=1, heard_s=1.5, handed_s=1.5, next_segment=1, next_s=1.5)
    talk.tracker.clear(time.monotonic())
    voice.wake()
    assert len(worker.of(ClearAudio)) == 1
    (cleared,) = [event for event in talk.events if isinstance(event, Cleared)]
    assert cleared.dropped_s == pytest.approx(1.5, abs=0.01)
    assert voice.outstanding_s(0.0) == 0 and talk.tracker.idle


async def test_a_worker_that_is_gone_at_the_hand_over_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "SPOKEN_S", 0.01)
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker)
    talk.say(3.0)
    lost(talk, 1.0)
    voice.stand_in()
    assert worker.line is not None
    worker.line._send = lambda message, payload=b"": False  # type: ignore[assignment]
    await voice.hand_over()
    talk.tracker.attach()
    start = talk.next_item()
    assert start is not None and '"heard_s":1.0' in str(start.payload)


async def test_a_voice_that_always_speaks_follows_the_agent_and_goes_on_without_it(clock: Clock) -> None:
    talk, worker = Talk(), Worker()
    voice = voice_of(talk, worker, always=True)
    voice.open()
    assert worker.of(JoinRoom)[0].on_air is True and worker.of(SyncTo)[0].segment == 0
    talk.tracker.audio_start(time.monotonic())
    assert talk.tracker.live is not None
    talk.tracker.live.add_notes([], [CaptionWord(text="Hello ", start=0, end=RATE)])  # not the voice's to show
    talk.say(2.0)
    follower = voice.follower
    assert follower is not None
    pull = follower.mirrored(talk.next_item)
    while pull(0.0, 0.0, False) is not None:  # as the agent's link does
        pass
    assert [m.start for m in worker.of(SegmentPcm)] == [0, 16_384]
    follower.on_voice(LinkVoice(segment=1, heard_s=0.0, in_s=0.15))
    follow = worker.of(SyncTo)[-1]
    assert follow.segment == 1 and follow.at == pytest.approx(clock.now + 0.13)
    worker.report(segment=1, heard_s=0.6, handed_s=0.6, next_segment=1, next_s=0.6)
    assert voice.position() == (1, 0.6)
    talk.rewind(1, 0.6)
    voice.stand_in()
    assert worker.of(SyncTo)[-1].free and talk.events == []
    talk.say(1.0)
    assert worker.of(SegmentPcm)[-1].start >= 16_384
    assert voice.view()["role"] == "speaks"  # type: ignore[index]
