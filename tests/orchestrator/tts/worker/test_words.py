"""Written words on spoken sounds."""

from __future__ import annotations

from orchestrator.tts.worker.synthesis import count_sounds, counted, marked, written


def test_words_put_together_are_the_text() -> None:
    assert written("  Hello,  you — there. ") == ["  Hello,  ", "you ", "— ", "there. "]


def test_marks_cut_the_text_and_a_mark_that_goes_back_is_none() -> None:
    assert marked("of the night", [(0, 10), (7, 90), (3, 95)], 200) == [("of the ", 10, 90), ("night", 90, 200)]
    assert marked("¿qué?", [(1, 5)], 50) == [("¿qué?", 5, 50)]
    assert marked("…", [], 50) == []


def test_words_lie_on_the_sounds_of_the_phrase_where_spoken_words_begin() -> None:
    spoken = [(symbol, 10 * k, 10 * k + 10) for k, symbol in enumerate("^ ʌvðə nˈaɪt .$")]
    placed = counted([("of ", 2), ("the ", 2), ("night.", 4)], spoken)
    assert [word for word, _, _ in placed] == ["of ", "the ", "night."]
    assert placed[0][1] == 20 and placed[2][1] == 70 and placed[0][1] <= placed[1][1] <= placed[2][1]
    assert placed[-1][2] == spoken[-1][2]


def test_nothing_said_has_no_words() -> None:
    assert counted([("…", 1)], [("_", 0, 10)]) == []
    assert count_sounds(["ˈ", "a", "ː", " ", "b", "."]) == 2
