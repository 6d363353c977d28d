"""The segment rules, one by one: what goes to the agent and what is reported to the sender."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from musetalk_agent.protocol.messages import Cleared, CueItem, PlaybackFinished, PlaybackStarted
from orchestrator.audio.segments import SegmentTracker
from tests.orchestrator.audio.spoken import speak

RATE = 16000


def tone(seconds: float, rate: int = RATE) -> bytes:
    return (np.sin(np.arange(round(seconds * rate)) * 0.3) * 8000).astype("<i2").tobytes()


def silence(seconds: float) -> bytes:
    return bytes(2 * round(seconds * RATE))


def forwarded(tracker: SegmentTracker) -> list[Any]:
    """Items as text types with their segment, runs of PCM as seconds."""
    out: list[Any] = []
    while (item := tracker.next_item(0.0)) is not None:
        if isinstance(item.payload, bytes):
            if out and isinstance(out[-1], float):
                out[-1] = round(out[-1] + item.seconds, 6)
            else:
                out.append(round(item.seconds, 6))
        else:
            message = json.loads(item.payload)
            out.append((message["type"], message.get("segment")))
    return out


def reported(tracker: SegmentTracker) -> list[dict[str, Any]]:
    return [event.model_dump(exclude_none=True) for event in tracker.take_events()]


def test_pcm_opens_a_segment_and_500_ms_without_it_end_it() -> None:
    tracker = SegmentTracker()
    tracker.push(tone(0.1), RATE, now=0.0)
    assert forwarded(tracker) == [("segment.start", 1), 0.1]
    assert not tracker.tick(0.49)
    tracker.push(tone(0.1), RATE, now=0.49)
    assert not tracker.tick(0.98)
    assert forwarded(tracker) == [0.1]
    assert tracker.tick(0.99)
    assert forwarded(tracker) == [("segment.end", 1)]
    tracker.push(tone(0.1), RATE, now=1.2)
    assert forwarded(tracker) == [("segment.start", 2), 0.1]


def test_an_explicit_segment_waits_ten_seconds_and_then_ends_with_a_warning() -> None:
    tracker = SegmentTracker()
    assert tracker.audio_start(0.0) == 1
    tracker.push(tone(0.1), RATE, now=1.0)
    assert not tracker.tick(10.99)
    assert reported(tracker) == []
    assert tracker.tick(11.0)
    (warning,) = reported(tracker)
    assert (warning["type"], warning["code"]) == ("warning", "segment_timeout")
    assert "Segment 1" in warning["message"]
    assert forwarded(tracker) == [("segment.start", 1), 0.1, ("segment.end", 1)]


def test_audio_start_inside_a_segment_ends_it_and_opens_the_next() -> None:
    tracker = SegmentTracker()
    tracker.push(tone(0.1), RATE, now=0.0)
    assert tracker.audio_start(0.1) == 2
    tracker.push(tone(0.2), RATE, now=0.2)
    assert tracker.audio_start(0.3) == 3
    tracker.audio_end()
    assert forwarded(tracker) == [
        *[("segment.start", 1), 0.1, ("segment.end", 1)],
        *[("segment.start", 2), 0.2, ("segment.end", 2)],
        *[("segment.start", 3), ("segment.end", 3)],
    ]


def test_audio_end_without_a_segment_does_nothing() -> None:
    tracker = SegmentTracker()
    tracker.audio_end()
    assert forwarded(tracker) == [] and reported(tracker) == []


def test_segments_play_in_the_order_they_were_opened() -> None:
    tracker = SegmentTracker()
    speech = tracker.open_segment(0.0, speech=True)
    tracker.push(tone(0.1), RATE, now=0.1)  # while the voice still thinks
    later = tracker.open_segment(0.2, speech=True)
    assert (speech.number, later.number) == (1, 3)
    assert forwarded(tracker) == []
    assert tracker.waiting_s == pytest.approx(0.1)
    speak(later, tone(0.3, 22050), 22050, 0.3)
    speak(speech, tone(0.2, 22050), 22050, 0.4, [CueItem(phoneme="a", start=0, end=4410)])
    assert forwarded(tracker) == [("segment.start", 1), ("segment.cues", 1), 0.2]
    speech.end()
    assert forwarded(tracker) == [("segment.end", 1), ("segment.start", 2), 0.1]
    tracker.audio_end()
    later.end()
    assert forwarded(tracker) == [("segment.end", 2), ("segment.start", 3), 0.3, ("segment.end", 3)]
    assert tracker.waiting_s == 0


def test_the_segment_carries_the_rate_of_its_audio() -> None:
    tracker = SegmentTracker()
    segment = tracker.open_segment(0.0, speech=True)
    speak(segment, tone(0.1, 22050), 22050, 0.0)
    item = tracker.next_item(0.0)
    assert item is not None and json.loads(item.payload)["sample_rate"] == 22050
    with pytest.raises(ValueError, match="22050 Hz, PCM came at 16000"):
        speak(segment, tone(0.1), RATE, 0.1)


def test_clear_tells_finished_for_every_open_segment_and_then_cleared() -> None:
    tracker = SegmentTracker()
    tracker.push(tone(1.0), RATE, now=0.0)
    assert forwarded(tracker) == [("segment.start", 1), 1.0]
    tracker.on_started(PlaybackStarted(segment=1), 0.1)
    speech = tracker.open_segment(0.2, speech=True)
    speak(speech, tone(0.5), RATE, 0.2)
    tracker.clear(0.4)
    assert forwarded(tracker) == [("clear", None)]
    assert speech.over and speak(speech, tone(0.5), RATE, 0.5) is None
    assert reported(tracker) == [{"type": "playback.started", "segment": 1}]
    tracker.on_finished(PlaybackFinished(segment=1, position_s=0.3, interrupted=True))
    clearing = tracker.on_cleared(Cleared(dropped_s=0.7))
    assert clearing is not None and clearing.dropped_s == pytest.approx(1.2)
    assert reported(tracker) == [
        {"type": "playback.finished", "segment": 1, "position_s": 0.3, "interrupted": True},
        {"type": "playback.finished", "segment": 2, "position_s": 0.0, "interrupted": True},
        {"type": "cleared", "dropped_s": 1.2},
    ]
    assert tracker.idle


def test_clear_overtakes_audio_that_waits() -> None:
    tracker = SegmentTracker()
    tracker.push(tone(30), RATE, now=0.0)
    first = tracker.next_item(0.0), tracker.next_item(0.0)
    assert all(first)
    tracker.clear(0.1)
    assert forwarded(tracker) == [("clear", None)]


@pytest.mark.parametrize(
    ("after", "heard"),
    [
        ([(0.02, "tone")] * 20, 0.0),  # a sender that has not noticed
        ([(0.30, "tone"), (0.02, "tone")], 0.04),  # a pause of 300 ms
        ([(0.29, "tone"), (0.02, "tone")], 0.0),
        ([(0.02, "silence")] * 15 + [(0.02, "tone")], 0.04),  # 300 ms of silence: its last block is heard, and the tone
        ([(0.02, "silence")] * 14 + [(0.02, "tone")] * 5, 0.0),
        ([(0.02, "start"), (0.0, "tone")], 0.02),  # audio.start at once
        ([(0.02, "end"), (0.0, "tone")], 0.0),  # the old utterance's own end is no sign of having noticed
    ],
)
def test_after_a_clear_audio_is_dropped_until_the_sender_has_noticed(
    after: list[tuple[float, str]], heard: float
) -> None:
    tracker = SegmentTracker()
    now = 0.0
    tracker.push(tone(0.02), RATE, now)
    tracker.clear(now)
    assert forwarded(tracker) == [("clear", None)]
    for wait, what in after:
        now += wait
        if what == "start":
            tracker.audio_start(now)
        elif what == "end":
            tracker.audio_end()
        else:
            tracker.push(tone(0.02) if what == "tone" else silence(0.02), RATE, now)
    assert sum(part for part in forwarded(tracker) if isinstance(part, float)) == pytest.approx(heard)


def test_a_second_word_about_a_segment_is_ignored() -> None:
    tracker = SegmentTracker()
    tracker.push(tone(0.1), RATE, now=0.0)
    forwarded(tracker)
    for _ in range(2):
        tracker.on_started(PlaybackStarted(segment=1), 0.1)
    for _ in range(2):
        tracker.on_finished(PlaybackFinished(segment=1, position_s=0.1, interrupted=False))
    tracker.on_finished(PlaybackFinished(segment=9, position_s=0.1, interrupted=False))
    assert [event["type"] for event in reported(tracker)] == ["playback.started", "playback.finished"]
    assert tracker.on_cleared(Cleared(dropped_s=0)) is None


def test_the_end_of_the_session_finishes_everything_exactly_once() -> None:
    tracker = SegmentTracker()
    tracker.push(tone(1.0), RATE, now=0.0)
    forwarded(tracker)
    tracker.on_started(PlaybackStarted(segment=1), 1.0)
    tracker.audio_start(1.1)
    tracker.clear(1.2)
    reported(tracker)
    tracker.finish_all(1.25)
    events = reported(tracker)
    assert [(e["type"], e.get("segment"), e.get("position_s")) for e in events] == [
        ("playback.finished", 1, 0.25),
        ("playback.finished", 2, 0.0),
        ("cleared", None, None),
    ]
    tracker.finish_all(2.0)
    assert reported(tracker) == []
