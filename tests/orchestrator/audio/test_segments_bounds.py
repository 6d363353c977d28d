"""Everything that a sender can open has a bound, and costs as much with many open as with few."""

from __future__ import annotations

import json

import pytest

from musetalk_agent.protocol.messages import CaptionWord, Cleared, CueItem, PlaybackFinished
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.outgoing_segment import NOTES
from orchestrator.audio.segments import CLEARS, SegmentTracker
from tests.orchestrator.audio.spoken import speak

RATE = 16000


def full(tracker: SegmentTracker) -> bool:
    try:
        tracker.check_open()
    except ProblemError as error:
        assert error.code is ErrorCode.BACKLOG_EXCEEDED and error.limit == 256
        return True
    return False


def test_256_segments_may_be_open_and_those_that_were_cleared_do_not_count() -> None:
    tracker = SegmentTracker()
    for _ in range(256):
        assert not full(tracker)
        tracker.audio_start(0.0)
    assert full(tracker)
    tracker.clear(0.0)
    assert not full(tracker) and tracker.open_segments == 0
    for _ in range(3):
        for _ in range(256):
            tracker.audio_start(0.0)
        assert full(tracker)
        tracker.clear(0.0)
    assert full(tracker), "1024 are open for an agent that answers no clear"
    while tracker.next_item(0.0) is not None:
        tracker.on_cleared(Cleared(dropped_s=0.0))
    assert not full(tracker) and tracker.idle


def test_a_segment_that_is_over_makes_room() -> None:
    tracker = SegmentTracker()
    for _ in range(256):
        tracker.audio_start(0.0)
    while tracker.next_item(0.0) is not None:
        pass
    tracker.on_finished(PlaybackFinished(segment=1, position_s=0.0, interrupted=False))
    assert not full(tracker)


def test_clears_that_nobody_answers_join_the_last_one_and_all_take_effect() -> None:
    tracker = SegmentTracker()
    clears = []
    for _ in range(3 * CLEARS):
        tracker.push(bytes(2 * RATE), RATE, 0.0)
        tracker.audio_start(0.0)
        tracker.push(bytes(2 * RATE), RATE, 0.0)
        clears.append(tracker.clear(0.0))
        assert tracker.waiting_s == 0 and tracker.open_segments == 0
    assert tracker.clears == CLEARS and clears[CLEARS] is clears[-1]
    sent = 0
    while (item := tracker.next_item(0.0)) is not None:
        assert json.loads(item.payload) == {"type": "clear"}
        sent += 1
    assert sent == CLEARS
    late = tracker.clear(0.0)
    assert late is not clears[-1], "what was forwarded cannot be joined"
    assert tracker.next_item(0.0) is None, "no more are under way than are counted"
    dropped_s = 0.0
    for _ in range(CLEARS + 1):
        answered = tracker.on_cleared(Cleared(dropped_s=0.0))
        assert answered is not None
        dropped_s += answered.dropped_s
        tracker.next_item(0.0)
    assert dropped_s == pytest.approx(2 * 3 * CLEARS)
    reported = tracker.take_events()
    finished = [event.segment for event in reported if isinstance(event, PlaybackFinished)]
    assert finished == list(range(1, tracker.opened + 1)) and tracker.idle


def test_phonemes_and_words_are_bounded_and_go_with_their_sound() -> None:
    tracker = SegmentTracker()
    segment = tracker.open_segment(0.0, speech=True)
    for at in range(0, 20 * RATE, RATE):
        cue = CueItem(phoneme="a", start=at, end=at + RATE)
        word = CaptionWord(text="a ", start=at, end=at + RATE)
        assert speak(segment, bytes(2 * RATE), RATE, 0.0, [cue], [word]) == 0
    assert tracker.notes == 40
    while tracker.next_item(0.0) is not None:
        pass
    tracker.on_heard(segment.number, 10.0, 1.0)
    tracker.on_heard(segment.number, 10.1, 1.1)
    assert 18 <= tracker.notes <= 20, "what is heard needs no phonemes for another agent"
    word = CaptionWord(text="a ", start=0, end=1)
    assert speak(segment, b"", RATE, 0.0, words=[word] * NOTES) == NOTES
    assert tracker.notes <= 20
    tracker.clear(2.0)
    tracker.on_cleared(Cleared(dropped_s=0.0))
    assert tracker.notes == 0
