"""A text and what is heard of it: the way through both, and the times of words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.features.phonemes import CLASSES
from musetalk_agent.judge.alignment import NAMES, Alignment, _path, _row, grouped, placed_words, step_at, step_s

LETTERS = st.text("abefkmnopst zß,.'é1", max_size=30)


def names(text: str) -> list[str]:
    return [NAMES[place] for place in _row(text)]


def aligned(text: str, each: int) -> Alignment:
    """A text whose every state lasts `each` steps."""
    row = _row(text)
    return Alignment(row, np.repeat(np.arange(len(row)), each), np.zeros((len(row) * each, len(CLASSES)), np.float32))


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("", ["pause"]),
        ("mama", ["pause", "lips", "vowel", "lips", "vowel", "pause"]),
        ("Bee", ["pause", "lips", "vowel", "pause"]),
        ("phone", ["pause", "teeth", "vowel", "tongue", "vowel", "pause"]),
        ("apple", ["pause", "vowel", "lips", "tongue", "vowel", "pause"]),
        ("Übel!", ["pause", "vowel", "lips", "vowel", "tongue", "pause"]),
        ("17", ["pause"]),
        ("a 17 b", ["pause", "vowel", "pause", "lips", "pause"]),
    ],
)
def test_a_text_is_read_as_classes_of_sounds_with_pauses_between_words(text: str, row: list[str]) -> None:
    assert names(text) == row


@given(LETTERS)
def test_no_two_vowels_and_no_two_pauses_stand_beside_each_other(text: str) -> None:
    row = names(text)
    assert row[0] == "pause" and row[-1] == "pause"
    beside = list(itertools.pairwise(row))
    assert ("vowel", "vowel") not in beside and ("pause", "pause") not in beside


@given(st.lists(st.integers(0, len(NAMES) - 1), min_size=2, max_size=12), st.integers(0, 2**32 - 1))
def test_the_way_through_a_text_goes_forward_skips_one_at_most_and_reaches_the_end(row: list[int], seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(len(row) + 3, len(NAMES)))
    path = _path(scores, row)
    steps = np.diff(path)
    assert path[0] in (0, 1) and path[-1] >= len(row) - 2
    assert steps.min(initial=0) >= 0 and steps.max(initial=0) <= 2


@given(st.lists(st.integers(0, len(NAMES) - 1), min_size=1, max_size=10).map(lambda row: [0, *row, 0]))
def test_what_is_heard_clearly_is_found_where_it_is(row: list[int]) -> None:
    """Each place of the text lasts three steps, in which its class alone is heard; equal neighbours cannot be distinguished."""
    row = [place for k, place in enumerate(row) if k == 0 or place != row[k - 1]]
    scores = np.full((3 * len(row), len(NAMES)), -9.0)
    scores[np.arange(len(scores)), np.repeat(row, 3)] = 0.0
    assert _path(scores, row).tolist() == np.repeat(np.arange(len(row)), 3).tolist()


def test_a_letter_that_is_silent_is_left_out() -> None:
    """The b of "lamb" is not heard."""
    row, said = _row("lamb"), ["pause", "tongue", "vowel", "lips", "pause"]
    assert [NAMES[place] for place in row] == ["pause", "tongue", "vowel", "lips", "lips", "pause"]
    scores = np.full((5 * len(said), len(NAMES)), -9.0)
    scores[np.arange(len(scores)), np.repeat([NAMES.index(name) for name in said], 5)] = 0.0
    path = _path(scores, row)
    assert set(path.tolist()) >= {0, 1, 2, 5} and len(set(path.tolist()) & {3, 4}) >= 1


@given(st.integers(-100, 100_000))
def test_a_step_begins_where_the_moment_before_it_ends(step: int) -> None:
    begin = step_s(step)
    assert step_s(step + 1) - begin == pytest.approx(0.02)
    assert step_at(begin + 0.005) == step == step_at(begin + 0.015)
    assert step_at(begin - 0.005) == step - 1


def test_probabilities_of_a_class_are_those_of_its_sounds_together() -> None:
    heard = np.zeros((1, len(CLASSES)), np.float32)
    for name, share in (("pb", 0.3), ("m", 0.2), ("sil", 0.5)):
        heard[0, CLASSES.index(name)] = share
    found = dict(zip(NAMES, np.exp(grouped(heard)[0]).tolist(), strict=True))
    assert found["lips"] == pytest.approx(0.5, abs=0.001) and found["pause"] == pytest.approx(0.5, abs=0.001)
    assert 0 < found["vowel"] < 0.001, "what is not heard is unlikely, and not impossible"


def test_words_begin_and_end_where_their_letters_do() -> None:
    words = placed_words(aligned("mama be", 10), "mama be", 60.0)
    assert [word for word, _, _ in words] == ["mama", "be"]
    (_, begin, end), (_, after, last) = words
    assert begin == pytest.approx(step_s(10)) and end == pytest.approx(step_s(50))
    assert after == pytest.approx(step_s(60)) and last == pytest.approx(step_s(80))


def test_a_word_of_which_nothing_is_heard_has_the_room_between_its_neighbours() -> None:
    words = placed_words(aligned("mama be", 50), "1 mama 2 3 be 4", 20.0)
    assert [word for word, _, _ in words] == ["1", "mama", "2", "3", "be", "4"]
    (_, zero, one), (_, mama, ended), two, three, (_, be, stop), (_, four, last) = words
    assert (zero, one) == (0.0, mama) and (four, last) == (stop, 20.0)
    assert two[1] == ended and two[2] == pytest.approx(three[1]) and three[2] == pytest.approx(be)
    assert two[2] - two[1] == pytest.approx(three[2] - three[1])


@given(LETTERS, st.integers(1, 20), st.floats(0, 30))
def test_every_word_has_a_time_inside_the_sound_and_none_begins_before_the_one_before(
    text: str, each: int, length_s: float
) -> None:
    words = placed_words(aligned(text, each), text, length_s)
    assert [word for word, _, _ in words] == text.split()
    times = [time for _, begin, end in words for time in (begin, end)]
    assert all(0 <= time <= length_s + 1e-9 for time in times)
    assert all(one <= other + 1e-9 for one, other in itertools.pairwise(times))
