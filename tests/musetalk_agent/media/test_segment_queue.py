"""The session's segments: what is reported of them, once and in order, whatever is handed over, cleared and played again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.media.segment import KEPT_S, ROOM_RATE, Caption, Segment, Word
from musetalk_agent.media.segment_queue import PlaybackQueue
from musetalk_agent.protocol.messages import Event, PlaybackFinished, PlaybackStarted

RATE = 16_000
MS = ROOM_RATE // 1000


class Played:
    """A speech, the sink's positions, and the events that were sent."""

    def __init__(self) -> None:
        self.reported: list[Event] = []
        self.shown: list[Caption] = []
        self.speech = PlaybackQueue(self.reported.append, self.shown.append)
        self.enqueued = self.position = self.generation = 0

    def begins(self, number: int, seconds: float, *, ended: bool = True, heard_before_s: float = 0.0) -> Segment:
        segment = Segment(number, self.generation, RATE, 25, heard_before_s)
        segment.push(np.full(round(seconds * RATE), 1000, np.int16), 0.0)
        if ended:
            segment.end(0.0)
        self.speech.open.append(segment)
        return segment

    def hands(self, blocks: int) -> None:
        """Gives the sink up to so many blocks, as the playback does: a segment begins where the sink stands."""
        for _ in range(blocks):
            segment = self.speech.next_unplayed()
            block = segment.take_block() if segment is not None else None
            if segment is None or block is None:
                return
            segment.take_features(10_000)
            segment.origin = self.enqueued if segment.origin is None else segment.origin
            self.enqueued += len(block)

    def hears(self, samples: int) -> list[Segment]:
        self.position = min(self.enqueued, self.position + samples)
        return self.speech.report(self.position)

    def rewinds(self, samples: int) -> None:
        """What was handed over after the position so far back is wanted again."""
        self.generation += 1
        self.position = self.enqueued = max(0, self.position - samples)
        self.speech.rewind(self.position, self.generation)

    def kinds(self) -> list[tuple[str, int]]:
        return [(event.type, event.segment) for event in self.reported]


def test_a_segment_is_reported_when_its_first_sample_was_heard_and_when_its_last_was() -> None:
    made = Played()
    made.begins(1, 0.4)
    assert made.hears(0) == [] and made.reported == []
    made.hands(100)
    assert made.enqueued == 400 * MS and made.hears(0) == []
    made.hears(1)
    assert made.reported == [PlaybackStarted(segment=1)]
    assert made.hears(400 * MS - 2) == [] and len(made.reported) == 1
    (over,) = made.hears(1)
    assert over.number == 1 and made.reported[1:] == [PlaybackFinished(segment=1, position_s=0.4, interrupted=False)]
    assert made.hears(1000) == [] and len(made.reported) == 2


def test_a_segment_that_has_no_end_is_not_over_when_all_of_it_was_heard() -> None:
    made = Played()
    segment = made.begins(1, 0.4, ended=False)
    made.hands(100)
    assert made.hears(10**6) == [] and 0 < made.speech.buffered_s(made.position) <= 0.02
    segment.end(1.0)
    made.hands(100)
    assert [over.number for over in made.hears(10**6)] == [1]


def test_an_empty_segment_is_over_at_once_and_has_not_begun() -> None:
    made = Played()
    made.begins(1, 0.0)
    made.begins(2, 0.2)
    assert [over.number for over in made.hears(0)] == [1]
    assert made.kinds() == [("playback.finished", 1)]


def test_the_words_are_shown_as_they_are_heard_and_the_line_ends_with_the_segment() -> None:
    made = Played()
    made.begins(1, 0.4).script.add([Word("one ", 0.0), Word("two", 0.3)])
    made.hands(100)
    made.hears(200 * MS)
    assert made.shown == [Caption("1", "one ")]
    made.hears(200 * MS)
    assert made.shown[1:] == [Caption("1", "two"), Caption("1", final=True)]


def test_a_clear_ends_what_is_open_where_it_was_heard_and_drops_the_rest() -> None:
    made = Played()
    made.begins(1, 1.0, heard_before_s=2.0)
    made.begins(2, 1.0)
    made.hands(20)
    made.hears(250 * MS)
    assert made.speech.clear(made.position) == pytest.approx(1.75)
    assert made.reported == [
        PlaybackFinished(segment=1, position_s=2.25, interrupted=True),
        PlaybackFinished(segment=2, position_s=0.0, interrupted=True),
    ]
    assert not made.speech.open and made.speech.clear(made.position) == 0.0 and len(made.reported) == 2
    assert made.speech.position_s(made.position) == pytest.approx(0.25)
    made.rewinds(100 * MS)
    assert not made.speech.open  # what was cleared does not come again


def test_a_rewind_brings_back_what_was_over_and_reports_none_of_it_again() -> None:
    made = Played()
    made.begins(1, 0.4)
    made.begins(2, 0.4)
    made.hands(100)
    made.hears(600 * MS)
    assert made.kinds() == [("playback.started", 1), ("playback.finished", 1), ("playback.started", 2)]
    assert made.speech.heard(made.position) == (2, pytest.approx(0.2))
    assert made.speech.position_s(made.position) == pytest.approx(0.6)
    made.rewinds(400 * MS)
    first, second = made.speech.open
    assert (first.number, first.begins_s, second.number, second.begins_s) == (1, pytest.approx(0.2), 2, 0.0)
    assert (first.generation, second.generation) == (1, 1)
    assert made.speech.heard(made.position) == (2, pytest.approx(0.2))  # stands until the replay has caught up
    assert made.speech.position_s(made.position) == pytest.approx(0.6)
    made.hands(100)
    made.hears(10**6)
    assert made.kinds()[3:] == [("playback.finished", 2)]
    assert made.speech.position_s(made.position) == pytest.approx(0.8)
    assert made.enqueued == 800 * MS


def test_a_rewind_further_back_than_is_kept_brings_what_is_kept() -> None:
    made = Played()
    made.begins(1, KEPT_S + 3)
    for _ in range(round((KEPT_S + 3) / 0.04)):
        made.hands(1)
        made.hears(1920)
    made.rewinds(round((KEPT_S + 2.5) * ROOM_RATE))
    (rest,) = made.speech.open
    assert KEPT_S - 0.1 <= rest.duration_s - rest.begins_s <= KEPT_S + 0.1


ACTS = st.lists(
    st.tuples(st.sampled_from(["begin", "hand", "hand", "hear", "hear", "rewind", "clear"]), st.integers(0, 500)),
    max_size=40,
)


@settings(max_examples=60)
@given(ACTS)
def test_each_segment_is_reported_once_in_order_and_what_was_heard_never_shrinks(acts: list[tuple[str, int]]) -> None:
    made, number, furthest, where = Played(), 0, 0.0, (0, 0.0)
    for act, much in acts:
        match act:
            case "begin":
                number += 1
                made.begins(number, much / 1000)
            case "hand":
                made.hands(much // 20)
            case "hear":
                made.hears(much * MS)
            case "rewind":
                made.rewinds(min(much * MS, made.position))
            case _:
                made.speech.clear(made.position)
                made.enqueued = made.position
        position_s, heard = made.speech.position_s(made.position), made.speech.heard(made.position)
        assert position_s >= furthest - 1e-9 and heard >= where
        furthest, where = position_s, heard
        assert made.speech.buffered_s(made.position) >= 0
    for _ in range(3):
        made.hands(10**4)
        made.hears(10**9)
    assert not made.speech.open
    finished = [event for event in made.reported if isinstance(event, PlaybackFinished)]
    started = [event.segment for event in made.reported if isinstance(event, PlaybackStarted)]
    assert [event.segment for event in finished] == list(range(1, number + 1))
    assert started == sorted(set(started))
    assert all(
        made.kinds().index(("playback.started", n)) < made.kinds().index(("playback.finished", n)) for n in started
    )
