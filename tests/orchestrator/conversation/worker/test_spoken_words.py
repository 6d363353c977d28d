"""How much of a segment was heard, and what was played when."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.conversation.worker.echo import PLAYED_S, RATE, Played, PlayedSound
from orchestrator.conversation.worker.spoken_words import SpokenWords


def test_a_word_that_has_begun_was_heard() -> None:
    words = SpokenWords()
    for n, text in enumerate(("One ", "two ", "three.")):
        words.add(text, 0.2 * n)
    assert words.heard(0.0) == ""
    assert words.heard(0.01) == "One" and words.heard(0.2) == "One"
    assert words.heard(0.21) == "One two" and words.heard(9.0) == "One two three."


def test_words_of_one_mark_come_together() -> None:
    words = SpokenWords()
    words.add("Most ", 0.1)
    words.add("of the ", 0.4)
    words.add("time", 0.3)  # a voice that goes back counts as one that stands still
    assert words.heard(0.35) == "Most" and words.heard(0.41) == "Most of the time"


def test_what_was_played_lies_where_it_was_heard() -> None:
    news: list[Played] = []

    def taken() -> Iterator[Played]:
        while news:
            yield news.pop(0)

    played = PlayedSound(taken)
    news.append((100.0, np.full(RATE // 10, 7, np.int16), RATE))
    found = played.between(99.95, RATE // 5)
    assert list(np.flatnonzero(found)) == list(range(RATE // 20, RATE // 20 + RATE // 10)) and set(found) == {0.0, 7.0}
    news.append((100.5, np.full(4800, 9, np.int16), 2 * RATE))
    found = played.between(100.5, 3000)
    assert np.count_nonzero(found == 9.0) == 2400, "at 16 kHz"
    assert not np.any(played.between(100.2, RATE // 10)), "silence between"
    assert np.all(played.between(100.0, 100) == 7.0), "what was before is still there"
    news.append((100.5 + PLAYED_S, np.full(10, 3, np.int16), RATE))
    assert not np.any(played.between(100.0, 100)), "and is not for ever"
