"""Words and when they are shown."""

from __future__ import annotations

import numpy as np

from musetalk_agent.media.segment import ROOM_RATE, WORDS_KEPT, Caption, Script, Segment, Word
from musetalk_agent.media_types import Cue


def script() -> Script:
    made = Script("3")
    made.add([Word("one ", 0.0), Word("two ", 0.5), Word("three", 1.0)])
    return made


def test_each_word_is_shown_once_when_its_sound_has_begun() -> None:
    made = script()
    assert made.hear(0.0) == Caption("3", "one ")
    assert made.hear(0.49) is None
    assert made.hear(1.2) == Caption("3", "two three")
    assert made.hear(9.0) is None


def test_a_line_that_was_begun_ends_once_and_one_that_was_not_never() -> None:
    made = script()
    assert made.end() is None
    made.hear(0.1)
    assert made.end() == Caption("3", final=True)
    assert made.end() is None


def test_the_rest_has_the_words_from_there_on_whether_they_were_shown_or_not() -> None:
    made = script()
    made.hear(0.9)
    rest = made.rest("3+0.300", 0.3)
    assert rest.hear(2.0) == Caption("3+0.300", "two three")


def test_a_script_keeps_so_many_words_and_those_that_wait_are_kept_first() -> None:
    made = Script("1")
    made.add([Word("a", 0.0)] * 1000)
    made.hear(0.0)
    made.add([Word("b", 1.0)] * WORDS_KEPT)
    made.add([Word("c", 2.0)])
    shown = made.hear(3.0)
    assert shown is not None and shown.text == "b" * WORDS_KEPT


def test_phonemes_count_from_the_whole_segments_beginning_also_when_it_goes_on_elsewhere() -> None:
    segment = Segment(1, 0, 8000, 25, heard_before_s=1.0)
    segment.add_cues([Cue("a", 0, 4000), Cue("b", 7000, 9000), Cue("c", 9000, 10_000)])
    assert segment.cues == [Cue("b", 0, 2000), Cue("c", 2000, 4000)]
    segment.push(np.ones(8000, np.int16), 0.0)
    while segment.take_block() is not None:
        pass
    while len(segment.take_features(1600)):
        pass
    segment.origin = 0
    rest = segment.rest(ROOM_RATE // 2, 1)
    rest.add_cues([Cue("d", 12_000, 12_800)])
    assert rest.cues == [Cue("d", 0, 1600)]
