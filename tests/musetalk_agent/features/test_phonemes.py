"""Symbols, classes and what each asks of the mouth; and timed symbols that become spans without gap, overlap or loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.features.phonemes import (
    ARTICULATION,
    CLASSES,
    CLOSURE,
    HOLD,
    JAW,
    LIP_TUCKS,
    LIPS_MEET,
    ROUNDING,
    SILENCE,
    TABLE,
    TUCK,
    WIDTH,
    classes_of,
    spans,
)


def names(symbol: str) -> list[str]:
    """The classes of a symbol, by name."""
    return [CLASSES[number] for number in classes_of(symbol)]


@pytest.mark.parametrize(
    ("symbol", "classes"),
    [
        ("p", ["pb"]),
        ("b", ["pb"]),
        ("m", ["m"]),
        ("f", ["fv"]),
        ("θ", ["th"]),
        ("ɾ", ["td"]),
        ("ŋ", ["kg"]),
        ("ɡ", ["kg"]),
        ("g", ["kg"]),
        ("ɹ", ["r"]),
        ("ə", ["schwa"]),
        ("ɜː", ["schwa"]),
        ("ˈiː", ["i"]),
        ("t͡ʃ", ["sh"]),
        ("tʃ", ["sh"]),
        ("ts", ["sz"]),
        ("aɪ", ["ae", "ih"]),
        ("oʊ", ["o", "u"]),
        ("eə", ["e", "schwa"]),
        ("ks", ["kg", "sz"]),
        ("pʰ", ["pb"]),
        ("n̩", ["n"]),
        ("tʲ", ["td"]),
        ("a\u0303", ["ae"]),
        ("\u00e3", ["ae"]),  # the same in one character
        ("\u1ebd", ["e"]),
        ("ç", ["kg"]),
        ("", ["sil"]),
        (" ", ["sil"]),
        ("ˈ", ["sil"]),
        ("_", ["sil"]),
        (".", ["sil"]),
        ("1", ["sil"]),
        ("Ω", ["schwa"]),
        ("你", ["schwa"]),
    ],
)
def test_a_symbol_has_the_classes_that_its_sounds_have_on_the_lips(symbol: str, classes: list[str]) -> None:
    assert names(symbol) == classes


@given(st.text(max_size=12))
def test_whatever_is_written_has_a_class(symbol: str) -> None:
    found = classes_of(symbol)
    assert found and all(0 <= number < len(CLASSES) for number in found)


@given(
    st.sampled_from("pbmfvθtnlszʃkɹwhjiɪeæɑʌɔouə"), st.sampled_from(["", "ˈ", "ˌ"]), st.sampled_from(["", "ː", "ʲ", "̃"])
)
def test_marks_change_no_class(sound: str, before: str, after: str) -> None:
    assert classes_of(before + sound + after) == classes_of(sound)


def test_what_the_classes_ask_of_the_mouth_is_what_phonetics_says() -> None:
    jaw = {name: float(TABLE[number, JAW]) for number, name in enumerate(CLASSES)}
    assert TABLE.shape == (25, len(ARTICULATION)) and HOLD.shape == (25,)
    assert not TABLE[SILENCE].any(), "at rest all is 0"
    assert jaw["a"] > jaw["ae"] > jaw["e"] > jaw["ih"] > jaw["i"] > jaw["u"], "open, mid and close vowels"
    assert jaw["sz"] < jaw["td"] < jaw["h"], "teeth together; tongue at the teeth; nothing in the way"
    wide, round_ = TABLE[:, WIDTH], TABLE[:, ROUNDING]
    assert CLASSES[int(wide.argmax())] == "i" and CLASSES[int(round_.argmax())] == "w"
    assert np.all(wide[round_ >= 0.4] < 0), "lips that are rounded are not spread"
    assert np.flatnonzero(TABLE[:, CLOSURE]).tolist() == sorted(LIPS_MEET)
    assert np.flatnonzero(TABLE[:, TUCK]).tolist() == [LIP_TUCKS]
    assert np.all((TABLE[:, [JAW, ROUNDING, CLOSURE, TUCK]] >= 0) & (TABLE[:, [JAW, ROUNDING, CLOSURE, TUCK]] <= 1))
    assert np.all(np.abs(wide) <= 1) and np.all((HOLD >= 0.1) & (HOLD <= 1)) and np.all(HOLD[list(LIPS_MEET)] == 1)


@pytest.mark.parametrize(
    ("timed", "spanned"),
    [
        ([], []),
        ([("p", 0, 100)], [("pb", 0, 100)]),
        ([("p", 100, 100), ("a", 100, 50)], []),
        ([("aɪ", 0, 100)], [("ae", 0, 50), ("ih", 50, 100)]),
        ([("aɪ", 0, 101)], [("ae", 0, 50), ("ih", 50, 101)]),
        ([("aɪ", 7, 8)], [("ih", 7, 8)]),
        ([("ˈ", 0, 30), ("a", 30, 100)], [("ae", 0, 100)]),
        ([("ˈ", 0, 30), ("ˌ", 30, 40), ("a", 40, 100)], [("ae", 0, 100)]),
        ([("a", 0, 60), ("ː", 60, 100)], [("ae", 0, 100)]),
        ([("a", 0, 60), ("ː", 70, 100)], [("ae", 0, 60)]),
        ([("ː", 0, 50), ("a", 50, 100)], [("ae", 50, 100)]),
        ([("a", 0, 50), ("", 50, 80), ("b", 80, 100)], [("ae", 0, 50), ("sil", 50, 80), ("pb", 80, 100)]),
    ],
)
def test_marks_with_a_time_of_their_own_belong_to_their_sound(
    timed: list[tuple[str, int, int]], spanned: list[tuple[str, int, int]]
) -> None:
    assert [(CLASSES[kind], start, end) for kind, start, end in spans(timed)] == spanned


SOUNDS = st.lists(
    st.tuples(st.sampled_from(["p", "a", "aɪ", "tʃ", "", ".", "ks", "oʊ"]), st.integers(0, 3000)), max_size=30
)


@given(SOUNDS, st.integers(0, 10**6))
def test_sounds_without_a_gap_become_spans_without_a_gap(sounds: list[tuple[str, int]], first: int) -> None:
    timed, at = [], first
    for symbol, length in sounds:
        timed.append((symbol, at, at + length))
        at += length
    spanned = spans(timed)
    assert sum(end - start for _, start, end in spanned) == at - first
    assert all(a[2] == b[1] for a, b in itertools.pairwise(spanned))
    assert all(start < end for _, start, end in spanned)
    assert [start for _, start, _ in spanned][:1] == ([first] if at > first else [])
