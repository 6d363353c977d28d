"""Agents that die, and what the next one is given: nothing lost, nothing reported twice."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.messages import Cleared, CueItem, PlaybackFinished, PlaybackStarted
from orchestrator.audio.outgoing_segment import ITEM_BYTES, OutgoingSegment
from orchestrator.audio.segments import SegmentTracker
from tests.orchestrator.audio.spoken import speak
from tests.orchestrator.audio.test_segments_any_order import check_totals

RATE = 16000
STEPS = ["pcm", "pcm", "start", "end", "clear", "open", "say", "say", "close", "forward", "forward", "play", "play"]
STEPS += ["ack", "report", "die", "revive"]


def numbered(first: int, count: int) -> bytes:
    """PCM whose samples say which they are."""
    return np.arange(first, first + count, dtype=np.int64).astype("<i2").tobytes()


class Agent:
    """Plays what it is sent, in order; its events and acks wait until somebody fetches them."""

    def __init__(self) -> None:
        self.base: dict[int, int] = {}
        self.pcm: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.heard: dict[int, int] = {}
        self.over: set[int] = set()
        self.current: int | None = None
        self.events: list[Any] = []
        self.last = 0

    def take(self, payload: bytes | str) -> None:
        if isinstance(payload, bytes):
            assert self.current is not None
            self.pcm[self.current] += payload
            return
        message = json.loads(payload)
        kind, number = message["type"], message.get("segment")
        if kind == "segment.start":
            assert self.current is None and number > max(self.base, default=0)
            self.current = number
            self.base[number] = self.heard[number] = round(message["heard_s"] * RATE)
            self.pcm[number] = bytearray()
        elif kind == "segment.end":
            assert self.current == number
            self.ended.add(number)
            self.current = None
        elif kind == "clear":
            for open_one in [n for n in self.base if n not in self.over]:
                self.finish(open_one, interrupted=True)
            self.current = None
            self.events.append(Cleared(dropped_s=0.0))

    def play(self, samples: int) -> None:
        for number in [n for n in self.base if n not in self.over]:
            there = self.base[number] + len(self.pcm[number]) // 2
            step = min(samples, there - self.heard[number])
            if step and not self.heard[number]:
                self.events.append(PlaybackStarted(segment=number))
            self.heard[number] += step
            self.last = number if step else self.last
            samples -= step
            if number in self.ended and self.heard[number] == there:
                self.finish(number, interrupted=False)
            else:
                return

    def finish(self, number: int, *, interrupted: bool) -> None:
        self.over.add(number)
        position_s = self.heard[number] / RATE
        self.events.append(PlaybackFinished(segment=number, position_s=position_s, interrupted=interrupted))


class World:
    """Everything that can happen to a session, and what was heard of it."""

    def __init__(self) -> None:
        self.tracker = SegmentTracker()
        self.now = 0.0
        self.agent: Agent | None = Agent()
        self.acked = (0, 0.0)
        self.pushed: dict[int, int] = defaultdict(int)
        self.voices: list[OutgoingSegment] = []
        self.live: int | None = None
        self.reported: list[tuple[str, int | None]] = []
        self.interrupted: set[int] = set()
        self.heard: dict[int, list[tuple[int, bytes]]] = defaultdict(list)

    def step(self, what: str, amount: int) -> None:
        self.now += 10.0  # so late that positions are never extrapolated
        getattr(self, what)(amount)
        check_totals(self.tracker)
        for event in self.tracker.take_events():
            self.reported.append((event.type, getattr(event, "segment", None)))
            if isinstance(event, PlaybackFinished) and event.interrupted:
                self.interrupted.add(event.segment)

    def pcm(self, amount: int) -> None:
        if self.live is None:
            self.start(0)
        assert self.live is not None
        self.tracker.push(numbered(self.pushed[self.live], amount), RATE, self.now)
        self.pushed[self.live] += amount

    def start(self, _: int) -> None:
        self.live = self.tracker.audio_start(self.now)

    def end(self, _: int) -> None:
        self.live = None
        self.tracker.audio_end()

    def clear(self, _: int) -> None:
        self.live = None
        self.voices.clear()
        self.tracker.clear(self.now)

    def open(self, _: int) -> None:
        self.voices.append(self.tracker.open_segment(self.now, speech=True))

    def say(self, amount: int) -> None:
        for segment in self.voices[-2:]:
            first = self.pushed[segment.number]
            cue = CueItem(phoneme="a", start=first, end=first + amount)
            assert speak(segment, numbered(first, amount), RATE, self.now, [cue]) is not None
            self.pushed[segment.number] += amount

    def close(self, _: int) -> None:
        if self.voices:
            self.voices.pop().end()

    def forward(self, amount: int) -> None:
        for _ in range(amount):
            item = self.tracker.next_item(0.0)
            if item is None:
                return
            assert self.agent is not None, "something was forwarded to nobody"
            self.agent.take(item.payload)

    def play(self, amount: int) -> None:
        if self.agent is not None:
            self.agent.play(3 * amount)

    def ack(self, _: int) -> None:
        if self.agent is not None and self.agent.last:
            self.acked = (self.agent.last, self.agent.heard[self.agent.last] / RATE)
            self.tracker.on_heard(*self.acked, self.now)

    def report(self, amount: int) -> None:
        for _ in range(amount):
            if self.agent is None or not self.agent.events:
                return
            event = self.agent.events.pop(0)
            if isinstance(event, PlaybackStarted):
                self.tracker.on_started(event, self.now)
            elif isinstance(event, PlaybackFinished):
                self.tracker.on_finished(event)
            else:
                assert self.tracker.on_cleared(event) is not None

    def die(self, _: int) -> None:
        if self.agent is None:
            return
        self.collect(self.agent)
        self.agent, self.acked = None, (0, 0.0)
        self.tracker.rewind(*self.tracker.position(self.now), self.now)
        assert self.tracker.at_agent_s == 0

    def revive(self, _: int) -> None:
        if self.agent is None:
            self.agent = Agent()
            self.tracker.attach()

    def collect(self, agent: Agent) -> None:
        for number, base in agent.base.items():
            self.heard[number].append((base, bytes(agent.pcm[number][: 2 * (agent.heard[number] - base)])))

    def drain(self) -> None:
        """Everybody says goodbye, and the last agent plays all there is."""
        while self.voices:
            self.step("close", 1)
        for what, amount in [("end", 1), ("revive", 1), ("forward", 10_000), ("play", 10_000), ("report", 10_000)]:
            self.step(what, amount)
        assert self.agent is not None
        self.collect(self.agent)


def check_heard(world: World, number: int) -> None:
    """The agents' parts make up the segment: each begins where the one before is known to have come, or earlier."""
    reached = 0
    for base, pcm in world.heard[number]:
        assert base <= reached, "a gap: samples were lost"
        assert pcm == numbered(base, len(pcm) // 2), "not the segment's own samples"
        reached = max(reached, base + len(pcm) // 2)
    assert reached == world.pushed[number]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 40)), max_size=120))
def test_whatever_dies_when_all_is_heard_and_each_segment_finished_once(steps: list[tuple[str, int]]) -> None:
    world = World()
    for what, amount in steps:
        world.step(what, amount)
    world.drain()
    kinds = [kind for kind, _ in world.reported]
    finished = [number for kind, number in world.reported if kind == "playback.finished"]
    assert sorted(finished) == list(range(1, world.tracker.opened + 1))  # type: ignore[type-var]
    started = [number for kind, number in world.reported if kind == "playback.started"]
    assert len(started) == len(set(started))
    assert kinds.count("cleared") == sum(what == "clear" for what, _ in steps)
    for number in set(finished) - world.interrupted:
        assert number is not None
        check_heard(world, number)
        assert (number in started) == (world.pushed[number] > 0)
    assert world.tracker.idle and world.tracker.waiting_s == 0


def forward_all(tracker: SegmentTracker) -> list[dict[str, Any]]:
    out = []
    while (item := tracker.next_item(0.0)) is not None:
        out.append(
            {"pcm": len(item.payload) // 2} if isinstance(item.payload, bytes) else dict(json.loads(item.payload))
        )
    return out


def test_a_sentence_goes_on_where_the_agents_last_word_and_the_time_since_put_it() -> None:
    tracker = SegmentTracker()
    tracker.push(numbered(0, RATE), RATE, 0.0, received=5)
    tracker.audio_end()
    forward_all(tracker)
    tracker.on_started(PlaybackStarted(segment=1), 1.0)
    tracker.on_heard(1, 0.2, 1.2)
    assert tracker.position(1.3) == (1, pytest.approx(0.24)), "the time since, less 60 ms of doubt"
    assert tracker.position(1.2) == (1, 0.2), "never behind its own word"
    assert tracker.position(1.6) == (1, 0.2), "an agent that was due to speak up stood still"
    tracker.rewind(*tracker.position(1.3), 1.3)
    assert forward_all(tracker) == []
    tracker.attach()
    start, pcm, end = forward_all(tracker)
    assert start["heard_s"] == pytest.approx(0.24, abs=1e-4) and start["received"] == 5 and start["segment"] == 1
    assert pcm["pcm"] == RATE - round(0.24 * RATE) and end["type"] == "segment.end"


def test_what_ended_unheard_of_is_reported_and_not_spoken_again() -> None:
    tracker = SegmentTracker()
    for first in range(2):
        tracker.push(numbered(0, 1600), RATE, float(first))
        tracker.audio_end()
    forward_all(tracker)
    tracker.on_heard(2, 0.05, 1.0)  # the words about the first one were lost with the agent
    tracker.rewind(*tracker.position(1.0), 1.0)
    reported = [(event.type, getattr(event, "segment", None)) for event in tracker.take_events()]
    assert reported == [("playback.started", 1), ("playback.finished", 1), ("playback.started", 2)]
    tracker.attach()
    assert [item.get("segment", item.get("pcm")) for item in forward_all(tracker)] == [2, 800, 2]


def test_phonemes_that_are_not_over_are_sent_again() -> None:
    tracker = SegmentTracker()
    segment = tracker.open_segment(0.0, speech=True)
    for first in (0, 1600):
        cue = CueItem(phoneme="a", start=first, end=first + 1600)
        speak(segment, numbered(first, 1600), RATE, 0.0, [cue])
    forward_all(tracker)
    tracker.rewind(segment.number, 0.12, 1.0)
    tracker.attach()
    start, cues, pcm = forward_all(tracker)
    assert start["heard_s"] == 0.12 and cues["cues"] == [{"phoneme": "a", "start": 1600, "end": 3200}]
    assert pcm["pcm"] == 1280


def test_a_clear_that_nobody_answered_and_one_that_nobody_can_are_answered() -> None:
    tracker = SegmentTracker()
    tracker.push(numbered(0, RATE), RATE, 0.0)
    forward_all(tracker)
    tracker.on_heard(1, 0.25, 1.0)
    under_way = tracker.clear(1.0)
    assert tracker.rewind(*tracker.position(1.0), 1.0) == [under_way]
    assert under_way.answered and under_way.dropped_s == pytest.approx(0.75)
    tracker.audio_start(1.1)
    tracker.push(numbered(0, RATE), RATE, 1.1)
    nobody = tracker.clear(1.2)
    assert nobody.answered and nobody.dropped_s == 1.0
    reported = [(event.type, getattr(event, "segment", None)) for event in tracker.take_events()]
    assert reported == [
        *[("playback.finished", 1), ("cleared", None)],
        *[("playback.finished", 2), ("cleared", None)],
    ]
    tracker.attach()
    assert forward_all(tracker) == []


def test_what_is_kept_is_bounded_because_no_more_is_forwarded_before_it_is_heard() -> None:
    tracker = SegmentTracker(ahead_s=2.0)
    tracker.push(numbered(0, 5 * RATE), RATE, 0.0)
    forward_all(tracker)
    assert 2.0 <= tracker.at_agent_s < 2.0 + ITEM_BYTES / 2 / RATE
    assert tracker.waiting_s == pytest.approx(5.0 - tracker.at_agent_s)
    tracker.on_heard(1, 1.0, 1.0)
    forward_all(tracker)
    assert 2.0 <= tracker.at_agent_s < 2.0 + ITEM_BYTES / 2 / RATE
    tracker.on_heard(1, 1.5, 1.5)
    assert tracker.next_item(0.0, outstanding_s=2.0) is None, "the agent has more than was forwarded from here"
    assert tracker.next_item(0.0, outstanding_s=1.9) is not None


def test_a_segment_that_a_rewind_finishes_counts_once() -> None:
    tracker = SegmentTracker()
    tracker.push(bytes(2 * RATE), RATE, 0.0)
    tracker.audio_end()
    while tracker.next_item(0.0) is not None:
        pass
    tracker.on_started(PlaybackStarted(segment=1), 1.0)
    tracker.rewind(1, 1.0, 2.0)  # the agent is lost before it has said that the segment is over
    assert tracker.idle and tracker.position_s(3.0) == 1.0
