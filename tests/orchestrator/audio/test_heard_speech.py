"""What was heard of the speech of a session, to the sample, whatever ended it."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.protocol.messages import PlaybackFinished, PlaybackStarted
from orchestrator.audio import heard_speech
from orchestrator.audio.heard_speech import HeardSpeech
from orchestrator.audio.segments import SegmentTracker

RATE = 16_000
ALL = (0, 0.0), (99, 0.0)


def pcm(seconds: float, first: int = 0) -> bytes:
    return (first + np.arange(round(seconds * RATE))).astype("<i2").tobytes()


def samples(heard: HeardSpeech, after: tuple[int, float] = ALL[0], until: tuple[int, float] = ALL[1]) -> list[int]:
    """The samples that were heard between two positions."""
    return list(np.frombuffer(b"".join(part.pcm for part in heard.between(after, until)), "<i2"))


def speaking() -> SegmentTracker:
    """A segment of 1 s, that the agent has, and is heard from 0.0 on."""
    tracker = SegmentTracker()
    tracker.totals.heard_pcm.kept = True
    tracker.audio_start(0.0)
    tracker.push(pcm(1.0), RATE, 0.0)
    tracker.audio_end()
    while tracker.next_item(0.0) is not None:
        pass
    tracker.on_started(PlaybackStarted(segment=1), 0.0)
    return tracker


def test_what_is_heard_is_kept_in_its_order() -> None:
    tracker = speaking()
    heard = tracker.totals.heard_pcm
    tracker.on_heard(1, 0.25, 0.25)
    tracker.on_heard(1, 0.5, 0.5)
    assert samples(heard) == list(range(8000)) and heard.end == (1, 0.5)
    tracker.on_finished(PlaybackFinished(segment=1, position_s=1.0, interrupted=False))
    assert samples(heard) == list(range(16_000)) and heard.end == (1, 1.0)


def test_of_what_is_cleared_is_kept_what_was_heard_by_then() -> None:
    tracker = speaking()
    tracker.on_heard(1, 0.25, 0.25)
    tracker.clear(0.4)
    assert samples(tracker.totals.heard_pcm) == list(range(6400))
    tracker.on_finished(PlaybackFinished(segment=1, position_s=0.45, interrupted=True))
    assert tracker.totals.heard_pcm.end == (1, 0.4)


def test_what_the_next_agent_says_again_is_kept_once() -> None:
    tracker = speaking()
    tracker.on_heard(1, 0.5, 0.5)
    tracker.rewind(1, 0.44, 0.6)
    tracker.attach()
    while tracker.next_item(1.0) is not None:
        pass
    tracker.on_heard(1, 0.75, 1.0)
    assert samples(tracker.totals.heard_pcm) == list(range(12_000))


@pytest.mark.parametrize(
    ("after", "until", "expected"),
    [
        ((0, 0.0), (99, 0.0), [*range(8), *range(100, 108)]),
        ((1, 0.5), (2, 0.25), [4, 5, 6, 7, 100, 101]),
        ((1, 1e9), (2, 1.0), [*range(100, 108)]),
        ((1, 0.25), (1, 0.5), [2, 3]),
        ((2, 0.75), (3, 0.0), [106, 107]),
        ((2, 1.0), (9, 0.0), []),
        ((2, 0.5), (1, 0.5), []),
    ],
)
def test_between_two_positions(after: tuple[int, float], until: tuple[int, float], expected: list[int]) -> None:
    heard = HeardSpeech()
    heard.kept = True
    for segment, first in ((1, 0), (2, 100)):
        for start in (0, 4):
            heard.add(segment, 8, start, (first + start + np.arange(4)).astype("<i2").tobytes())
    assert samples(heard, after, until) == expected


def test_it_keeps_nothing_before_it_is_asked_to_and_no_more_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard_speech, "KEPT_S", 1.0)
    heard = HeardSpeech()
    heard.add(1, RATE, 0, pcm(0.1))
    assert heard.between(*ALL) == []
    heard.kept = True
    for number in range(16):
        heard.add(2, RATE, 2000 * number, pcm(0.125, 2000 * number))
    assert samples(heard) == list(range(RATE, 2 * RATE)) and heard.end == (2, 2.0)
