"""Whatever sender, voices, time and agent do, in whatever order: the invariants of segments."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.messages import Cleared, CueItem, PlaybackFinished, PlaybackStarted
from orchestrator.audio.outgoing_segment import OutgoingSegment, _size
from orchestrator.audio.segments import SegmentTracker
from tests.orchestrator.audio.spoken import speak

RATE = 16000
STEPS = ["pcm", "start", "end", "clear", "open", "say", "close", "tick", "forward", "play", "finish", "answer"]


def check_totals(tracker: SegmentTracker) -> None:
    """The running totals are the sums over all segments, exactly."""
    segments = list(tracker._open.values())
    rates = {s.number: s.rate or 1 for s in segments}
    audio = [s for s in segments if not s.cleared]
    assert tracker.waiting_s == pytest.approx(sum((s.samples - s.sent) / rates[s.number] for s in segments), abs=1e-9)
    assert tracker.at_agent_s == pytest.approx(sum((s.sent - s.heard) / rates[s.number] for s in segments), abs=1e-9)
    for speech, total_s in ((False, tracker.audio_s), (True, tracker.speech_s)):
        unheard = [(s.samples - s.heard) / rates[s.number] for s in audio if s.speech is speech]
        assert total_s == pytest.approx(sum(unheard), abs=1e-9)
    assert tracker.notes == sum(_size(note) for s in segments for _, note in s.notes)
    assert tracker.open_segments == len(audio)
    assert tracker.position_s(0.0) == pytest.approx(tracker._finished_s + sum(s.played_s(0.0) for s in segments))
    if not segments:
        assert (tracker.waiting_s, tracker.at_agent_s, tracker.audio_s, tracker.speech_s, tracker.notes) == (0,) * 5


class World:
    """A tracker with an agent that plays what it is sent, and a count of everything."""

    def __init__(self) -> None:
        self.tracker = SegmentTracker()
        self.now = 0.0
        self.voices: list[OutgoingSegment] = []
        self.grammar: list[tuple[str, int]] = []
        self.current: int | None = None
        self.known: dict[int, int] = {}
        self.ended: set[int] = set()
        self.done: set[int] = set()
        self.clears = 0
        self.events: list[tuple[str, int | None]] = []
        self.pushed = self.forwarded = 0

    def step(self, what: str, amount: int) -> None:
        self.now += 0.01 * amount
        getattr(self, what)(amount)
        check_totals(self.tracker)
        self.events += [(e.type, getattr(e, "segment", None)) for e in self.tracker.take_events()]

    def pcm(self, amount: int) -> None:
        self.tracker.push(b"\x00\x40" * amount, RATE, self.now)
        self.pushed += amount

    def start(self, _: int) -> None:
        self.tracker.audio_start(self.now)

    def end(self, _: int) -> None:
        self.tracker.audio_end()

    def clear(self, _: int) -> None:
        self.tracker.clear(self.now)

    def open(self, _: int) -> None:
        self.voices.append(self.tracker.open_segment(self.now, speech=True))

    def say(self, amount: int) -> None:
        for segment in self.voices[-2:]:
            cue = CueItem(phoneme="a", start=0, end=amount)
            if speak(segment, b"\x00\x40" * amount, RATE, self.now, [cue]) is not None:
                self.pushed += amount

    def close(self, _: int) -> None:
        if self.voices:
            self.voices.pop().end()

    def tick(self, amount: int) -> None:
        self.now += 0.1 * amount
        self.tracker.tick(self.now)

    def forward(self, amount: int) -> None:
        for _ in range(amount):
            item = self.tracker.next_item(0.0)
            if item is None:
                return
            self.take(item.payload)

    def take(self, payload: bytes | str) -> None:
        if isinstance(payload, bytes):
            assert self.current is not None
            self.known[self.current] += len(payload) // 2
            self.forwarded += len(payload) // 2
            return
        message = json.loads(payload)
        kind, number = message["type"], message.get("segment")
        if kind == "segment.start":
            assert self.current is None and number > max(self.known, default=0)
            self.current = number
            self.known[number] = 0
        elif kind == "segment.cues":
            assert self.current == number
        elif kind == "segment.end":
            assert self.current == number
            self.current = None
            self.ended.add(number)
        else:
            self.current = None
            self.clears += 1
            for open_one in sorted(set(self.known) - self.done):
                self.finish_one(open_one, interrupted=True)

    def play(self, _: int) -> None:
        for number in sorted(set(self.known) - self.done)[:1]:
            self.tracker.on_started(PlaybackStarted(segment=number), self.now)

    def finish(self, _: int) -> None:
        for number in sorted(self.ended - self.done)[:1]:
            self.finish_one(number, interrupted=False)

    def finish_one(self, number: int, *, interrupted: bool) -> None:
        self.done.add(number)
        self.tracker.on_finished(PlaybackFinished(segment=number, position_s=0.1, interrupted=interrupted))

    def answer(self, _: int) -> None:
        while self.clears:
            self.clears -= 1
            self.tracker.on_cleared(Cleared(dropped_s=0.0))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 30)), max_size=80))
def test_every_opened_segment_is_finished_exactly_once(steps: list[tuple[str, int]]) -> None:
    world = World()
    for what, amount in steps:
        world.step(what, amount)
    world.tracker.finish_all(world.now)
    world.step("tick", 1)
    finished = [number for kind, number in world.events if kind == "playback.finished"]
    assert sorted(finished) == list(range(1, world.tracker.opened + 1))
    for kind, number in world.events:
        if kind == "playback.started":
            assert world.events.index(("playback.started", number)) < world.events.index(("playback.finished", number))
    assert len([1 for kind, _ in world.events if kind == "cleared"]) == sum(what == "clear" for what, _ in steps)
    assert world.forwarded <= world.pushed and world.tracker.waiting_s == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([s for s in STEPS if s != "clear"]), st.integers(1, 30)), max_size=60))
def test_without_a_clear_every_sample_is_forwarded(steps: list[tuple[str, int]]) -> None:
    world = World()
    for what, amount in steps:
        world.step(what, amount)
    for _ in range(len(world.voices)):
        world.step("close", 1)
    world.step("end", 1)
    world.step("forward", 10_000)
    assert world.forwarded == world.pushed
    assert sorted(world.known) == list(range(1, world.tracker.opened + 1)) == sorted(world.ended)
