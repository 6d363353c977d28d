"""How measures become verdicts, faults, JSON and a table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.judge.film_report import (
    MEASURES,
    FaceReport,
    FilmReport,
    Measure,
    Verdict,
    at_least,
    at_most,
    not_judged,
)

GOOD = Measure(1.0, 2.0, Verdict.PASSED)
BAD = Measure(3.0, 2.0, Verdict.FAILED, "it is wrong.", (0.04, 1.0))


def face(number: int = 0, **measures: Measure) -> FaceReport:
    """A face that passes but for the measures that are given."""
    return FaceReport(number, 0.5, 3.46, 75, 131.4, dict.fromkeys(MEASURES, GOOD) | measures)


def film(*faces: FaceReport, left_out: int = 0) -> FilmReport:
    return FilmReport(Path("a film.mp4"), 4.0004, 100, 0.00004, "plain", list(faces), left_out)


FINITE = st.floats(-1e6, 1e6)


@given(FINITE, FINITE)
def test_a_value_at_its_bar_passes_from_both_sides_and_one_beyond_fails_with_its_reason(
    value: float, bar: float
) -> None:
    high, low = at_most(value, bar, "too much.", (1.0,)), at_least(value, bar, "too little.", (1.0,))
    assert (high.verdict is Verdict.FAILED) == (value > bar) and (low.verdict is Verdict.FAILED) == (value < bar)
    assert high.reason == ("too much." if value > bar else None)
    assert low.reason == ("too little." if value < bar else None)
    assert (high.value, high.bar, high.worst) == (low.value, low.bar, low.worst) == (value, bar, (1.0,))


@pytest.mark.parametrize("held", [at_most, at_least])
def test_what_was_not_seen_is_not_judged(held: object) -> None:
    assert callable(held)
    found = held(math.nan, 1.0, "wrong.", (1.0,))
    assert found == not_judged("too little of the face was seen.") and found.value is None and found.bar is None


def test_a_measure_in_json_has_what_it_has() -> None:
    assert GOOD.as_dict() == {"value": 1.0, "bar": 2.0, "verdict": "passed"}
    assert Measure(0.123456, 2.0, Verdict.FAILED, "it is wrong.", (1.23456, 2.0)).as_dict() == {
        "value": 0.1235,
        "bar": 2.0,
        "verdict": "failed",
        "reason": "it is wrong.",
        "worst_s": [1.235, 2.0],
    }
    assert not_judged("no sound.").as_dict() == {
        "value": None,
        "bar": None,
        "verdict": "not_judged",
        "reason": "no sound.",
    }


@given(st.sets(st.sampled_from(MEASURES)), st.sets(st.sampled_from(MEASURES)))
def test_faults_are_named_once_and_in_the_order_of_the_measures(one: set[str], other: set[str]) -> None:
    found = film(face(0, **dict.fromkeys(one, BAD)), face(1, **dict.fromkeys(other, BAD)))
    assert found.faults == [name for name in MEASURES if name in one | other]
    assert found.passed == (not one | other)
    assert found.faces[0].faults == [name for name in MEASURES if name in one]


def test_what_is_not_judged_is_no_fault_and_a_film_without_a_face_is() -> None:
    assert film(face(seam=not_judged("too few frames."))).passed
    empty = film(left_out=2)
    assert not empty.passed and empty.faults == ["no_face"]
    assert json.loads(empty.as_json())["left_out"] == 2


def test_the_report_in_json_is_one_line_with_every_measure_of_every_face() -> None:
    text = film(face(), face(1, lag_ms=BAD, frozen=not_judged("no sound."))).as_json()
    assert "\n" not in text
    found = json.loads(text)
    assert {name: found[name] for name in ("film", "seconds", "frames", "passed", "faults", "black", "describer")} == {
        "film": "a film.mp4",
        "seconds": 4.0,
        "frames": 100,
        "passed": False,
        "faults": ["lag_ms"],
        "black": 0.0,
        "describer": "plain",
    }
    first, second = found["faces"]
    assert (first["face"], first["first_s"], first["last_s"], first["frames"], first["width_px"]) == (
        *(0, 0.5, 3.46),
        *(75, 131),
    )
    assert list(first)[5:] == list(MEASURES)
    assert second["lag_ms"]["worst_s"] == [0.04, 1.0] and second["frozen"]["reason"] == "no sound."


def test_the_table_has_a_line_a_measure_and_one_for_the_outcome() -> None:
    lines = film(face(2, rest=BAD, black=not_judged("no reference.", 0.25))).as_text().splitlines()
    assert lines[0] == "face 2: 131 px wide, 75 frames, 0.50 to 3.46 s"
    table = {line.split()[1]: line.split() for line in lines[1:-1]}
    assert list(table) == list(MEASURES)
    assert table["lag_ms"] == ["ok", "lag_ms", "1", "2"]
    assert table["rest"] == ["FAIL", "rest", "3", "2", *"it is wrong.".split()]
    assert table["black"] == ["–", "black", "0.25", *"no reference.".split()]
    assert lines[-1] == "a film.mp4: failed: rest"
    assert film(face()).as_text().endswith("a film.mp4: passed")
    assert film().as_text() == "a film.mp4: failed: no_face"
