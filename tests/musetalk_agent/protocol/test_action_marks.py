"""`[wave]` in a text: what is spoken of it, what is a mark, and the word that it comes with; however the text is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol.action_marks import ActionMark, ActionMarks, MarkTimes, letters

NAMES = ("idle", "wave", "wave-2", "nod_slow", "7")


def read(text: str, names: tuple[str, ...] = NAMES) -> tuple[str, list[tuple[str, int]]]:
    marks = ActionMarks(names)
    spoken = marks.whole(text)
    return spoken, [(mark.name, mark.letters) for mark in marks.found]


@pytest.mark.parametrize(
    ("text", "spoken", "found"),
    [
        ("Hello [wave] there.", "Hello there.", [("wave", 5)]),
        ("Hello [wave], you.", "Hello, you.", [("wave", 5)]),
        ("[wave] Hello.", "Hello.", [("wave", 0)]),
        ("Bye. [wave]", "Bye.", [("wave", 3)]),
        ("Hello [Wave]there", "Hello there", [("wave", 5)]),
        ("Hel[wave]lo", "Hello", [("wave", 3)]),
        ("one[wave][nod_slow] two", "one two", [("wave", 3), ("nod_slow", 3)]),
        ("[wave]", "", [("wave", 0)]),
        ("[7] and [[wave-2]]", "and []", [("7", 0), ("wave-2", 3)]),
        ("你好[wave]，世界", "你好，世界", [("wave", 2)]),
        (
            "He said [sic] so [pause 500ms] and [unknown] too [wav",
            "He said [sic] so [pause 500ms] and [unknown] too [wav",
            [],
        ),
        ("[ wave ] [wave ", "[ wave ] [wave ", []),
        ("  kept  spaces \n", "  kept  spaces \n", []),
    ],
)
def test_marks_go_and_all_else_stays(text: str, spoken: str, found: list[tuple[str, int]]) -> None:
    assert read(text) == (spoken, found)


def test_without_clips_nothing_is_a_mark_and_nothing_waits() -> None:
    marks = ActionMarks(())
    assert [marks.push("Hello [wave"), marks.push("] there"), marks.end()] == ["Hello [wave", "] there", ""]
    assert not marks.found


def test_a_mark_in_pieces_is_a_mark_and_only_what_may_be_one_waits() -> None:
    marks = ActionMarks(NAMES)
    pieces = ["Well ", "[wa", "ve", "]", " hel", "lo [", "s", "ic]", " [nod"]
    assert [marks.push(piece) for piece in pieces] == ["Well", "", "", "", " hel", "lo", " [s", "ic]", ""]
    assert marks.end() == " [nod"
    assert list(marks.found) == [ActionMark("wave", 4)]


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["[", "]", "[wave]", "[Wave-2]", "[7]", "[idle", "wave]", " ", "\n", "é", "你", "."]),
        st.text(max_size=6),
    )
).map("".join)


@given(TEXTS, st.data())
def test_however_a_text_is_cut_it_is_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    marks = ActionMarks(NAMES)
    spoken = "".join(marks.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)) + marks.end()
    assert (spoken, [(mark.name, mark.letters) for mark in marks.found]) == read(text)


@given(TEXTS)
def test_no_letter_is_lost_and_none_is_added(text: str) -> None:
    spoken, found = read(text)
    written = re.findall("|".join(re.escape(f"[{name}]") for name in NAMES), text, re.IGNORECASE | re.ASCII)
    assert [f"[{name}]" for name, _ in found] == [mark.lower() for mark in written]
    assert letters(spoken) == letters(text) - sum(letters(mark) for mark in written)
    without = re.sub("|".join(re.escape(f"[{name}]") for name in NAMES), "", text, flags=re.IGNORECASE | re.ASCII)
    assert re.sub(r"\s", "", spoken) == re.sub(r"\s", "", without)
    if not written:
        assert spoken == text
    assert [at for _, at in found] == sorted(at for _, at in found)


@given(TEXTS)
def test_each_mark_comes_once_and_with_the_first_word_behind_it(text: str) -> None:
    marks = ActionMarks(NAMES)
    words = marks.whole(text).split()
    wanted = [mark.letters for mark in marks.found]
    times, said, came = MarkTimes(marks), 0, []
    for word in words:
        before = said
        said += letters(word)
        came += [before for _ in times.reached(word)]
    assert len(came) + len(times.rest()) == len(wanted)
    for at, before in zip(wanted, came, strict=False):
        assert before <= at
    assert times.rest() == []
