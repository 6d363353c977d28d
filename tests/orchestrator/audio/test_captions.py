"""Words on their way to the agent: before their sound, and once more where that was not heard."""

from __future__ import annotations

import json
from typing import Any

from musetalk_agent.protocol.messages import CaptionWord
from orchestrator.audio.segments import SegmentTracker
from tests.orchestrator.audio.spoken import speak

RATE = 16_000


def forwarded(tracker: SegmentTracker) -> list[Any]:
    """Names of messages, words of captions, and samples of PCM."""
    out: list[Any] = []
    while (item := tracker.next_item(0.0)) is not None:
        if isinstance(item.payload, bytes):
            out.append(len(item.payload) // 2)
        else:
            message = json.loads(item.payload)
            words = [word["text"] for word in message.get("words", [])]
            out.append(words or message["type"])
    return out


def tracked() -> SegmentTracker:
    """Half a second with two words, then another with a third."""
    tracker = SegmentTracker()
    segment = tracker.open_segment(0.0, speech=True)
    first = [CaptionWord(text="one ", start=0, end=4000), CaptionWord(text="two ", start=4000, end=8000)]
    speak(segment, bytes(16_000), RATE, 0.0, words=first)
    speak(segment, bytes(16_000), RATE, 0.0, words=[CaptionWord(text="three", start=9000, end=16_000)])
    segment.end()
    return tracker


def test_words_go_before_their_sound() -> None:
    assert forwarded(tracked()) == ["segment.start", ["one ", "two "], 8000, ["three"], 8000, "segment.end"]


def test_another_agent_gets_the_words_that_have_not_begun() -> None:
    tracker = tracked()
    forwarded(tracker)
    tracker.rewind(1, 0.2, 1.0)
    tracker.attach()
    assert forwarded(tracker) == ["segment.start", ["two "], 4800, ["three"], 8000, "segment.end"]


def test_what_was_said_but_not_shown_is_shown_by_the_next_agent() -> None:
    tracker = tracked()
    forwarded(tracker)
    tracker.rewind(1, 0.2, 1.0)
    tracker.attach(shows=False)
    forwarded(tracker)
    tracker.rewind(1, 0.8, 2.0)
    tracker.attach()
    assert forwarded(tracker) == ["segment.start", ["two "], ["three"], 3200, "segment.end"]


def test_words_of_a_cleared_segment_are_gone() -> None:
    tracker = tracked()
    tracker.next_item(0.0)
    tracker.clear(0.1)
    assert forwarded(tracker) == ["clear"]
