"""Segments that another process began."""

from __future__ import annotations

import json

from musetalk_agent.protocol.messages import Cleared, PlaybackFinished, PlaybackStarted
from orchestrator.audio.segments import SegmentTracker


def texts(tracker: SegmentTracker) -> list[tuple[str, int | None]]:
    """Messages to the agent that wait."""
    reported = []
    while (item := tracker.next_item(0.0)) is not None:
        if isinstance(item.payload, str):
            message = json.loads(item.payload)
            reported.append((message["type"], message.get("segment")))
    return reported


def finished(tracker: SegmentTracker) -> list[tuple[int, bool]]:
    return [(e.segment, e.interrupted) for e in tracker.take_events() if isinstance(e, PlaybackFinished)]


def test_what_the_agent_has_is_ended_there_and_what_it_never_heard_of_is_over() -> None:
    tracker = SegmentTracker()
    tracker.inherit(5, {2: True, 3: False, 4: False, 5: False}, at_agent=3)
    assert finished(tracker) == [(4, True), (5, True)]
    assert texts(tracker) == [("segment.end", 3)]
    assert tracker.playing and not tracker.idle
    tracker.on_finished(PlaybackFinished(segment=2, position_s=1.0, interrupted=False))
    tracker.on_started(PlaybackStarted(segment=3), 0.0)
    tracker.on_finished(PlaybackFinished(segment=3, position_s=2.0, interrupted=False))
    tracker.on_finished(PlaybackFinished(segment=3, position_s=2.0, interrupted=False))
    assert finished(tracker) == [(2, False), (3, False)]
    assert tracker.idle
    assert tracker.audio_start(0.0) == 6


def test_the_agent_may_know_of_more_than_was_stored() -> None:
    tracker = SegmentTracker()
    tracker.inherit(1, {}, at_agent=2)
    assert tracker.unfinished == {2: False} and texts(tracker) == [("segment.end", 2)]
    tracker.on_finished(PlaybackFinished(segment=2, position_s=1.0, interrupted=False))
    assert finished(tracker) == [(2, False)] and tracker.audio_start(0.0) == 3


def test_a_clear_and_the_loss_of_the_agent_end_them() -> None:
    tracker = SegmentTracker()
    tracker.inherit(2, {1: True, 2: False}, at_agent=2)
    tracker.clear(1.0)
    assert texts(tracker) == [("clear", None)]
    tracker.on_cleared(Cleared(dropped_s=3.0))
    assert finished(tracker) == [(1, True), (2, True)]
    tracker.inherit(3, {3: True}, at_agent=3)
    tracker.rewind(0, 0.0, 2.0)
    tracker.attach()
    assert texts(tracker) == [("segment.start", 3), ("segment.end", 3)]  # the next agent tells that it is over
