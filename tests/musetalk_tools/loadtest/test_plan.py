"""What a run will do, at the edges of what it may be asked, and the bars it is held against."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_tools.loadtest.plan import PATTERN, Plan, PlanError, check
from musetalk_tools.loadtest.speech_source import UTTERANCE_S
from musetalk_tools.loadtest.thresholds import FAILED, THRESHOLDS, add_arguments, judge
from musetalk_tools.loadtest.viewer_metrics import Figure, Tallies

AWAY = "https://avatar.example"


def plan(**fields: Any) -> Plan:
    return Plan(**{"url": AWAY, "sessions": 1, "minutes": 1.0, **fields})


@pytest.mark.parametrize(
    ("field", "good", "bad", "reported"),
    [
        ("sessions", (1, 1000), (0, -1, 1001), "--sessions {}: give 1 to 1000."),
        ("minutes", (0.1, 1440), (0.09, -1, 1441), "--minutes {}: give 0.1 to 1440."),
        ("speak_share", (0.05, 1.0), (0.04, 1.01, 0), "--speak-share {}: give 0.05 to 1."),
        ("ramp_s", (0, 3600), (-1, 3601), "--ramp {}: give 0 to 3600."),
        ("interrupt_every", (0, 1000), (-1, 1001), "--interrupt-every {}: give 0 to 1000."),
    ],
)
def test_every_number_has_its_edges(field: str, good: tuple[float, ...], bad: tuple[float, ...], reported: str) -> None:
    for value in good:
        check(plan(**{field: value}), anyway=True)
    for value in bad:
        with pytest.raises(PlanError) as caught:
            check(plan(**{field: value}), anyway=True)
        assert str(caught.value) == reported.format(f"{value:g}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["minutes", "speak_share", "ramp_s"])
def test_no_number_that_is_none_is_taken(field: str, value: float) -> None:
    with pytest.raises(PlanError, match="give"):
        check(plan(**{field: value}), anyway=True)


@pytest.mark.parametrize("url", ["avatar.example", "ws://x", "", "file:///etc/passwd", "HTTP//x"])
def test_an_address_is_one_of_http(url: str) -> None:
    with pytest.raises(PlanError, match="begins with http"):
        check(plan(url=url), anyway=True)


@pytest.mark.parametrize(
    ("url", "cores", "most"),
    [("http://127.0.0.1:8080", 1, 2), ("http://localhost", 4, 8), (AWAY, 1, 8), (AWAY, 16, 128)],
)
def test_what_a_machine_bears_is_its_cores_and_whether_the_service_is_on_it(url: str, cores: int, most: int) -> None:
    check(plan(url=url, sessions=most), anyway=False, cores=cores)
    with pytest.raises(PlanError, match=rf"--sessions {most + 1}: with {cores} cores {most} make sense here"):
        check(plan(url=url, sessions=most + 1), anyway=False, cores=cores)
    check(plan(url=url, sessions=most + 1), anyway=True, cores=cores)


@given(
    sessions=st.integers(1, 1000),
    minutes=st.floats(0.1, 1440),
    ramp=st.floats(0, 3600),
    share=st.floats(0.05, 1.0),
)
def test_a_plan_adds_up(sessions: int, minutes: float, ramp: float, share: float) -> None:
    made = plan(sessions=sessions, minutes=minutes, ramp_s=ramp, speak_share=share)
    begins = [made.begins_at(index) for index in range(sessions)]
    assert begins == sorted(begins) and begins[0] == 0 and all(at < ramp or ramp == 0 for at in begins)
    assert made.seconds == pytest.approx(ramp + 60 * minutes)
    assert made.window_s >= 2.0 and made.seconds / made.window_s <= 120 + 1e-6, "at most 120 points in the picture"
    assert UTTERANCE_S / (UTTERANCE_S + made.pause_s) == pytest.approx(share)
    assert len({made.body(index)["room"] for index in range(min(sessions, 20))}) == min(sessions, 20)
    check(made, anyway=True)


@pytest.mark.parametrize(
    ("engine", "avatar", "body"),
    [
        (None, None, {"avatar_id": "demo"}),
        (PATTERN, None, {"engine": "pattern"}),
        (PATTERN, "sha256:1", {"engine": "pattern", "avatar_id": "sha256:1"}),
        ("warp", None, {"engine": "warp", "avatar_id": "demo"}),
        (None, "mine", {"avatar_id": "mine"}),
    ],
)
def test_the_pattern_needs_no_avatar_and_everything_else_one(
    engine: str | None, avatar: str | None, body: dict[str, str]
) -> None:
    made = plan(engine=engine, avatar_id=avatar)
    assert made.body(3) == {"room": f"{made.rooms}3", **body}


def test_two_runs_have_rooms_of_their_own() -> None:
    assert plan().rooms != plan().rooms


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"sessions": 1, "interrupt_every": 0, "run_id": "r"},
            "1 session with one viewer each at https://avatar.example for 60 s, speaking 50 % of the time (tones). "
            "Rooms: loadtest-r-*",
        ),
        (
            {"sessions": 2, "ramp_s": 30, "speak_share": 0.1, "engine": "warp", "speech": "a.wav", "run_id": "r"},
            "2 sessions with one viewer each at https://avatar.example for 90 s, speaking 10 % of the time (a.wav), "
            "every 3. utterance interrupted, engine warp. Rooms: loadtest-r-*",
        ),
    ],
)
def test_it_says_what_it_will_do(fields: dict[str, Any], sentence: str) -> None:
    assert plan(**fields).sentence() == sentence


# --- options and bars


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--sessions", "2", "--minutes", "1", *options])


def test_every_bar_is_an_option_and_every_option_a_bar_of_a_figure_that_there_is() -> None:
    reported = vars(parsed(*(part for kind in THRESHOLDS for part in (f"--{kind.option}", "1.5"))))
    figures = vars(Tallies())
    for kind in THRESHOLDS:
        assert reported[kind.option.replace("-", "_")] == 1.5
        assert kind.figure in figures and kind.value in Figure.model_fields
        assert figures[kind.figure]._unit == kind.unit
    assert len({kind.option for kind in THRESHOLDS}) == len(THRESHOLDS)


@pytest.mark.parametrize(
    "options",
    [
        ["--sessions", "two"],
        ["--max-p95-start", "fast"],
        ["--interrupt-every", "1.5"],
        ["--no-such-option"],
        ["--ramp"],
    ],
)
def test_an_option_that_is_none_ends_with_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*options)
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err


def test_defaults_are_those_of_the_help() -> None:
    reported = parsed()
    assert (reported.speak_share, reported.interrupt_every, reported.ramp, reported.max_failed, reported.yes) == (
        0.5,
        3,
        0.0,
        0,
        False,
    )
    assert reported.max_p95_start is None and reported.json is None and reported.picture is None


def figure(unit: str = "s", **values: float) -> Figure:
    flat = dict.fromkeys(("mean", "min", "p5", "p50", "p95", "p99", "max"), 1.0)
    return Figure(unit=unit, count=10, **(flat | values))


@pytest.mark.parametrize(
    ("option", "figures", "value", "held"),
    [
        ("max-p95-start", {"start_s": figure(p95=2.0, max=9.0)}, 2.0, True),
        ("max-p95-start", {"start_s": figure(p95=2.001)}, 2.001, False),
        ("max-p99-gap", {"gap_ms": figure(p99=1.5, p95=9.0)}, 1.5, True),
        ("max-move", {"move_s": figure(max=2.5, p95=1.0)}, 2.5, False),
        ("max-move", {}, None, True),
        ("max-p95-skew", {"skew_ms": figure(p95=-300.0), "skew_abs_ms": figure(p95=1.0)}, 1.0, True),
        ("min-p5-fps", {"fps": figure(p5=2.0, min=0.0)}, 2.0, True),
        ("min-p5-fps", {"fps": figure(p5=1.999, p95=25.0)}, 1.999, False),
        ("min-p5-fps", {}, None, False),
        ("max-p95-interrupt", {}, None, False),
    ],
)
def test_a_bar_bounds_its_own_value_of_its_own_figure(
    option: str, figures: dict[str, Figure], value: float | None, held: bool
) -> None:
    failed, verdict = judge({option: 2.0}, figures, failed=0)
    assert (failed.option, failed.held, failed.bar) == (FAILED, True, 0)
    assert (verdict.option, verdict.bar, verdict.value, verdict.held) == (option, 2.0, value, held)


@pytest.mark.parametrize(("most", "failed", "held"), [(0, 0, True), (0, 1, False), (2, 2, True), (2, 3, False)])
def test_so_many_sessions_may_fail(most: int, failed: int, held: bool) -> None:
    (verdict,) = judge({FAILED: most}, {}, failed)
    assert (verdict.value, verdict.held) == (failed, held)
